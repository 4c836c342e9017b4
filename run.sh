#!/usr/bin/env bash
# Train: bash run.sh [configs/x.yaml] [words of train.py]. Makes .venv from requirements.txt if packages are missing.
# bash run.sh --python: only see to the packages, and print the python that has them.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
own=$repository/.venv

fail() {
  echo "run.sh: $1" >&2
  exit 2
}

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Without the package `packaging` the others are not all there either.
has_packages() {
  "$1" - "$repository/requirements.txt" >/dev/null 2>&1 <<'PYTHON'
import sys
from importlib.metadata import distribution
from packaging.requirements import Requirement
for line in open(sys.argv[1], encoding="utf-8"):
    if text := line.partition("#")[0].strip():
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate():
            distribution(wanted.name)
PYTHON
}

# A .venv with all the packages, made or completed.
install() {
  if [[ ! -e $own ]]; then
    [[ -w $repository ]] || fail "$repository cannot be written: make a virtual environment elsewhere, install requirements.txt into it, activate it and run this again"
    if ! said=$("$1" -m venv "$own" 2>&1); then
      rm -rf "$own"  # half made
      fail "$1 cannot make .venv; on Debian and Ubuntu: apt install python3-venv; its last words: ${said##*$'\n'}"
    fi
  fi
  "$own/bin/python" -m pip --version >/dev/null 2>&1 || fail ".venv has no pip: rm -r $own, and run this again"
  echo "installing the packages of requirements.txt into .venv (some minutes, once)" >&2
  said=$("$own/bin/python" -m pip install --quiet --disable-pip-version-check -r "$repository/requirements.txt" 2>&1) && return
  case $said in
    *"Retrying (Retry"*"No matching distribution"*) fail "pip cannot reach its package index: look to the network or proxy, and run this again" ;;
    *) fail "the packages are not all in .venv (with CUDA's they take 7 GB): $(grep -E '^ERROR' <<<"$said" | tail -n 1 || true); run this again once it is mended" ;;
  esac
}

case $(uname -s) in
  MINGW* | MSYS* | CYGWIN*) fail "Windows itself is not supported: use WSL 2 (wsl --install) and run this within it" ;;
esac
python= found=$(python3 --version 2>/dev/null || true)
for name in python3 python3.{11..20} python; do
  if is_new_enough "$name"; then
    python=$name
    break
  fi
done
[[ $python ]] || fail "needs Python 3.11 or newer, and found only ${found:-none}: install python3.11 or newer beside it"
if ! has_packages "$python"; then
  if [[ -e $own || -L $own ]] && ! is_new_enough "$own/bin/python"; then
    fail ".venv is broken, of another machine or of a Python before 3.11: rm -r $own, and run this again"
  fi
  has_packages "$own/bin/python" || install "$python"
  python=$own/bin/python
fi
if [[ ${1:-} == --python ]]; then
  command -v "$python"
  exit
fi

words=()
if [[ $# -gt 0 && $1 != -* ]]; then
  words=(--path_to_yaml "$1")
  shift
fi
exec "$python" "$repository/train.py" ${words[@]+"${words[@]}"} "$@"
