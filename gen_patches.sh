#!/usr/bin/env bash
# Makes training patches from raw_data/ with one MPI rank per core. Needs nothing but Python 3.11 or newer:
# the first run makes the environment .venv, later runs reuse it.
#
#   ./gen_patches.sh [argument of main.py ...]
#
# Arguments given here win over the ones below; relative paths in them are seen from this folder.
# RANKS=4 sets the number of ranks; PYTHON=/path/to/python sets the Python (see setup_env.sh).
set -euo pipefail
unset CDPATH
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=setup_env.sh
source "$here/setup_env.sh"
cd "$here"

choose_python .venv requirements.txt
choose_mpi

# The output of this very job may be made anew; one of the user's own job is overwritten only on request.
overwrite=--overwrite
for argument in "$@"; do
    case $argument in
        -h | --help) exec "$python" main.py --help ;; # once, not on every rank
        --output* | --input[-_]folder* | --config*) overwrite= ;;
    esac
done

ranks=${RANKS:-$cores}
case $ranks in
    *[!0-9]* | 0*) die "RANKS=$ranks is not a number of ranks" ;;
esac

exec "$mpiexec" -n "$ranks" "$python" main.py \
    --input-folder './raw_data' \
    --output-fname './results/training_patches.h5' \
    --patch-size 'p55' \
    --mpi_run \
    --rot_augment \
    --ds_augment \
    --air_threshold \
    ${overwrite:+"$overwrite"} \
    "$@"
