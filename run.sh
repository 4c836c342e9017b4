#!/usr/bin/env bash
# Train: bash run.sh [configs/x.yaml] [words of train.py]. Makes .venv from requirements.txt if packages are missing.
# bash run.sh --python: only see to the packages, and print the python that has them.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

has_packages() {
  "$1" - "$repository/requirements.txt" >/dev/null 2>&1 <<'PYTHON'
import re, sys
from importlib.metadata import distribution
for line in open(sys.argv[1]):
    if name := re.match(r"[\w-]+", line):
        distribution(name[0])
PYTHON
}

python=python3
if ! has_packages "$python"; then
  python="$repository/.venv/bin/python"
  if ! has_packages "$python"; then
    echo "installing the packages of requirements.txt into .venv (some minutes, once)" >&2
    python3 -m venv "$repository/.venv"
    if ! "$python" -m pip install --quiet --disable-pip-version-check -r "$repository/requirements.txt" >&2; then
      echo "run.sh: the packages are not all in .venv, for the reason above; with CUDA's they take 7 GB. Run this again once it is mended" >&2
      exit 2
    fi
  fi
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
exec "$python" "$repository/train.py" "${words[@]}" "$@"
