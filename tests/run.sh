#!/usr/bin/env bash
# The fast tests, on all cores: bash tests/run.sh [words of pytest], for instance -m slow.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(bash run.sh --python)
"$python" -m ruff check .
"$python" -m ruff format --check .
exec "$python" -m pytest -n auto --dist worksteal "$@"
