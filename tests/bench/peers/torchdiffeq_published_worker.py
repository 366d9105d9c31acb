"""torchdiffeq as in torchdiffeq_worker.py, with the velocities laid out as the paper's programs lay
them out. The same numbers, more memory traffic.
"""

import torch

import torch_problem
import torchdiffeq_worker


class Cnf(torch_problem.Cnf):
    """Hidden units along the batch axis of the products; the trace from a product of its own."""

    def forward(self, t, y):
        z, _ = y
        w, u, b = self.weights(t)
        w, u, b = w.unsqueeze(2), u.unsqueeze(1), b.view(-1, 1, 1)  # [width, 2, 1], [width, 1, 2]
        copies = z.unsqueeze(0).repeat(self.width, 1, 1)  # [width, batch, 2]
        f = torch.matmul(torch.tanh(torch.matmul(copies, w) + b), u).mean(0)
        again = torch.bmm(z.unsqueeze(0).expand(self.width, -1, -1), w).squeeze(2) + b.squeeze(2)
        dot = torch.bmm(u, w).view(-1, 1)
        trace = ((1 - torch.tanh(again) ** 2) * dot).sum(0) / self.width
        return f, -trace.view(-1, 1)


class OtFlow(torch_problem.OtFlow):
    """J as [batch, m, d + 1] with a column of zeros for the time."""

    def squared_rows(self, q0):
        k0 = self.K0.clone()
        k0[:, -1] = 0
        j = q0.unsqueeze(2) * k0.unsqueeze(0)
        return torch.norm(torch.einsum("ij,bjk->bik", self.K1, j), dim=2) ** 2


if __name__ == "__main__":
    torch_problem.KINDS |= {"cnf": Cnf, "otflow": OtFlow}
    torchdiffeq_worker.main()
