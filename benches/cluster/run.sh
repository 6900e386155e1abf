#!/bin/sh
# Measures a cluster under conditions that are made for it: benches/cluster/run.sh link|scaling|frame|results|fairness|memory|warmup|ssb [--runs 5] [--json FILE] ...
# `run.sh BENCH --help` lists the options of a bench. link, scaling and ssb need root, ssb not with --rate off.
#
# AUBADE_BIN    the binary to measure (default: ${CARGO_TARGET_DIR:-target}/release/aubade)
# AUBADE_VENV   where the virtual environment is kept (default: in the user's cache folder, shared with tests/clients)
set -eu

here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH= cd -- "$here/../.." && pwd)

case ${1:-} in
link | scaling | frame | results | fairness | memory | warmup | ssb) bench=$1 ;;
*)
    echo "usage: run.sh link|scaling|frame|results|fairness|memory|warmup|ssb [options]" >&2
    exit 2
    ;;
esac
shift

. "$root/tests/clients/venv.sh"
find_binary "$root"
make_venv "${AUBADE_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/aubade/venv}" "$root/tests/clients/requirements.txt"
export PYTHONDONTWRITEBYTECODE=1
exec "$venv_python" "$here/$bench.py" "$@"
