#include <doctest/doctest.h>

#include <fstream>
#include <sstream>
#include <string>

namespace {

std::string read(const std::string& path) {
  std::ifstream file(std::string(HALFTAPE_SOURCE_DIR) + "/" + path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

TEST_CASE("the README's program is the one that is built against the installed package") {
  const std::string program = read("tests/consumer/main.cpp");
  REQUIRE(!program.empty());
  CHECK(read("README.md").find("```cpp\n" + program + "```") != std::string::npos);
}
