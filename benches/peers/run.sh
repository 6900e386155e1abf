#!/bin/sh
# Measures Aubade against its peers on TPC-H: benches/peers/run.sh [--scale 1] [--runs 5] [--json FILE] ...
#
# AUBADE_BIN          the binary to measure (default: ${CARGO_TARGET_DIR:-target}/release/aubade)
# AUBADE_PEERS_VENV   where the virtual environment is kept (default: in the user's cache folder)
set -eu

here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH= cd -- "$here/../.." && pwd)

. "$root/tests/clients/venv.sh"
find_binary "$root"
make_venv "${AUBADE_PEERS_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/aubade/venv-peers}" "$here/requirements.txt"
export PYTHONDONTWRITEBYTECODE=1
exec "$venv_python" "$here/peers.py" "$@"
