#!/usr/bin/env bash
# Style checks and tests, on a machine that has only Python:
#
#   bash launch/test.sh [ARGUMENTS OF PYTEST]       for example: bash launch/test.sh -m slow
#
# Makes .venv and installs the project with what its tests need on the first run. Tests run on the CPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

install_into_venv "[test]"
export JAX_PLATFORMS=cpu
cd "$ROOT"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
# Two processes: one keeps little more than one core busy, compiling.
"$VENV/bin/python" -m pytest --numprocesses=2 --dist=loadfile "$@"
