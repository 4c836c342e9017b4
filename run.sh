#!/usr/bin/env bash
# Train: bash run.sh [configs/x.yaml] [options of train.py]. Makes .venv with requirements.txt if packages are missing.
# bash run.sh --python [extras of pyproject.toml]: only install the packages, and print the python that has them.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
own=$repository/.venv
cpu_builds=https://download.pytorch.org/whl/cpu

fail() {
  echo "run.sh: $1" >&2
  exit 2
}

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

has_gpu() {
  [[ -e /dev/nvidia0 ]] || nvidia-smi -L >/dev/null 2>&1
}

# Print the packages of requirements.txt and of the extras, one per line; fail if this python lacks one of them.
# It also fails without the package `packaging`, since the others need it.
packages() {
  "$1" - "$repository" "$extras" 2>/dev/null <<'PYTHON'
import sys, tomllib
from importlib.metadata import distribution
from pathlib import Path
repository, extras = Path(sys.argv[1]), sys.argv[2].split()
lines = (repository / "requirements.txt").read_text("utf-8").splitlines()
if extras:
    table = tomllib.loads((repository / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    lines += [line for extra in extras for line in table[extra]]
lines = [text for line in lines if (text := line.partition("#")[0].strip())]
print(*lines, sep="\n", flush=True)
from packaging.requirements import Requirement
for wanted in map(Requirement, lines):
    if wanted.marker is None or wanted.marker.evaluate():
        distribution(wanted.name)
PYTHON
}

has_packages() {
  packages "$1" >/dev/null
}

# Install the packages on standard input, one per line. Python compiles the modules that it imports; to compile all of
# them here would take half a minute or more.
pip_install() {
  "$own/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check "$@" -r /dev/stdin 2>&1
}

# Make or complete a .venv with all packages.
install() {
  wanted=$(packages "$1" || true)
  [[ $wanted || -z $extras ]] || fail "pyproject.toml lacks one of the extras $extras: correct its name"
  if [[ ! -e $own ]]; then
    [[ -w $repository ]] || fail "$repository cannot be written: make a virtual environment elsewhere, install requirements.txt into it, activate it and run this again"
    if ! said=$("$1" -m venv "$own" 2>&1); then
      rm -rf "$own"  # half made
      fail "$1 cannot make .venv; on Debian and Ubuntu: apt install python3-venv; its last message: ${said##*$'\n'}"
    fi
  fi
  "$own/bin/python" -m pip --version >/dev/null 2>&1 || fail ".venv has no pip: rm -r $own, and run this again"
  echo "installing the packages of requirements.txt${extras:+ and of the extras $extras} into .venv (some minutes, once)" >&2
  # Without a GPU, install torch without CUDA's 4 GB if its own index answers; otherwise it comes with the rest.
  if [[ $(uname -s) == Linux ]] && ! has_gpu && "$own/bin/python" -c "from urllib.request import urlopen; urlopen('$cpu_builds/torch/', timeout=5)" >/dev/null 2>&1; then
    grep -E '^torch' <<<"$wanted" | pip_install --index-url "$cpu_builds" >/dev/null || true
  fi
  said=$(pip_install <<<"$wanted") && return
  case $said in
    *"Retrying (Retry"*"No matching distribution"*) fail "pip cannot reach its package index: check the network or proxy, and run this again" ;;
    *) fail "some packages are missing from .venv (with CUDA's they take 6 GB): $(grep -E '^ERROR' <<<"$said" | tail -n 1 || true); fix this and run it again" ;;
  esac
}

extras=
if [[ ${1:-} == --python ]]; then
  extras=${*:2}
fi
if has_gpu && [[ $extras != *gpu* ]]; then
  extras="$extras gpu"
fi

case $(uname -s) in
  MINGW* | MSYS* | CYGWIN*) fail "Windows itself is not supported: use WSL 2 (wsl --install) and run this in it" ;;
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
    fail ".venv is broken, from another machine or from a Python before 3.11: rm -r $own, and run this again"
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
