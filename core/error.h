// Errors. Every text has the form
//   op: what failed - got A and B, need C. Fix: one concrete action.
// The library throws and never prints, aborts or exits.
#pragma once

#include <stdexcept>
#include <string>

namespace halftape {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct ShapeError : Error {
  using Error::Error;
};
struct DTypeError : Error {
  using Error::Error;
};
struct DeviceError : Error {
  using Error::Error;
};
struct NumericError : Error {  // non-finite values where finite ones are needed
  using Error::Error;
};
struct MemoryError : Error {
  using Error::Error;
};
struct ValueError : Error {  // an argument outside its range, an unknown name, a stale tape
  using Error::Error;
};
struct FileError : Error {
  using Error::Error;
};

}  // namespace halftape
