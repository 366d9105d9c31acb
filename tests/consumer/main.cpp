// Uses the installed headers and library as their only source; exit code 0 when all is right.
#include <halftape/core/error.h>
#include <halftape/core/tensor.h>
#include <halftape/core/version.h>

#include <cstdio>
#include <vector>

int main() {
  using namespace halftape;
  const Tensor third = Tensor::from({2}, {1.0 / 3.0, -2.0}, DType::f16);
  if (third.to_vector() != std::vector<double>{0.333251953125, -2.0}) {
    std::printf("consumer: 1/3 in f16 is wrong\n");
    return 1;
  }
  try {
    Tensor::from({3}, {1.0}, DType::f32);
    std::printf("consumer: a wrong count was accepted\n");
    return 1;
  } catch (const ShapeError& error) {  // crosses the library boundary with its type
    std::printf("halftape %s: %s\n", version.data(), error.what());
  }
  return 0;
}
