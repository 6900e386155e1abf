# Sourced by run.sh here and in benches: finds the binary, and makes a virtual environment with pinned packages.

# find_binary ROOT: sets and exports AUBADE_BIN, unless it is set, to what cargo has built in ROOT.
find_binary() {
    if [ -z "${AUBADE_BIN:-}" ]; then
        AUBADE_BIN=${CARGO_TARGET_DIR:-$1/target}/release/aubade
    fi
    if [ ! -x "$AUBADE_BIN" ]; then
        echo "run.sh: no binary at $AUBADE_BIN; build it with 'cargo build --release', or set AUBADE_BIN" >&2
        exit 2
    fi
    AUBADE_BIN=$(realpath "$AUBADE_BIN")
    export AUBADE_BIN
}

# make_venv FOLDER REQUIREMENTS: sets venv_python. Installs again only when the requirements changed.
make_venv() {
    venv_python=$1/bin/python
    if [ -x "$venv_python" ] && cmp -s "$2" "$1/requirements.txt"; then
        return
    fi
    echo "making a virtual environment in $1" >&2
    mkdir -p "$1"
    if ! python3 -m venv --clear "$1"; then
        echo "cannot make a virtual environment; on Debian and Ubuntu, install python3-venv" >&2
        exit 2
    fi
    "$venv_python" -m pip install --quiet --disable-pip-version-check --requirement "$2" >&2
    cp "$2" "$1/requirements.txt"
}
