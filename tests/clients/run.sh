#!/bin/sh
# Runs the client tests in a virtual environment of their own: tests/clients/run.sh [pytest arguments]
# Paths in the arguments are relative to this folder: tests/clients/run.sh test_queries.py -k view
#
# AUBADE_BIN    the binary under test (default: ${CARGO_TARGET_DIR:-target}/release/aubade)
# AUBADE_VENV   where the virtual environment is kept (default: in the user's cache folder)
set -eu

here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH= cd -- "$here/../.." && pwd)

. "$here/venv.sh"
find_binary "$root"
make_venv "${AUBADE_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/aubade/venv}" "$here/requirements.txt"
export PYTHONDONTWRITEBYTECODE=1
if [ $# -eq 0 ]; then
    set -- -q
fi
cd "$here"
exec "$venv_python" -m pytest "$@"
