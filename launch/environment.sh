# Sourced by the scripts beside it: makes .venv in the repository and installs into it, once.
#
#   install_into_venv [EXTRAS]     for example install_into_venv "[test]"
#
# Afterwards $VENV/bin holds python and imagen-video. What was installed is remembered in a file named
# after a digest of setup.py, so that the next run starts at once and a changed setup.py is noticed.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"

fail() {
  echo "error: $*" >&2
  exit 1
}

find_python() {
  local python
  for python in python3 python3.14 python3.13 python3.12 python3.11 python; do
    # Run, not only looked for: a version manager's stand-in may be there without the version.
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
      >/dev/null 2>&1; then
      echo "$python"
      return
    fi
  done
  fail "needs Python 3.11 or newer with its venv module, and found none on PATH" \
    "(on Debian or Ubuntu: apt install python3 python3-venv)"
}

install_into_venv() {
  local extras="${1:-}" python="$VENV/bin/python" stamp
  # A virtual environment cannot be moved, so its place is part of what was installed.
  stamp="$VENV/.installed-$({ echo "$ROOT$extras"; cat "$ROOT/setup.py"; } | cksum | tr ' ' -)"
  [[ -f $stamp ]] && "$python" -c '' 2>/dev/null && return

  if ! "$python" -m pip --version >/dev/null 2>&1; then
    local found
    found="$(find_python)"
    echo "Making $VENV with $("$found" --version) ..." >&2
    # Also repairs one that an interrupted run left half made.
    "$found" -m venv "$VENV" || fail "could not make $VENV"
  fi
  echo "Installing imagen-video$extras into $VENV, this once ..." >&2
  "$python" -m pip install --quiet --disable-pip-version-check --no-input \
    --editable "$ROOT$extras" || fail "installation failed, see above"
  touch "$stamp"
}
