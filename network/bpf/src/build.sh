#!/usr/bin/env bash
# Compiles tap.c into $1 (../tap.o when not given). The object depends on the sources and the compiler only, not on where
# they lie: the same compiler makes the same bytes. The version is Debian 12's.
set -euo pipefail
out=$(realpath -m "${1:-"$(dirname "$0")/../tap.o"}")
cd "$(dirname "$0")"
clang-14 -O2 -g -target bpf -mcpu=v2 -Wall -Wextra -Wno-unused-function -Werror -fdebug-compilation-dir=. -c tap.c -o "$out"
llvm-strip-14 -g "$out"
