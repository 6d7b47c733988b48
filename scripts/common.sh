# Shared by the scripts: talk, Debian packages, the virtual environment. Sourced, not run.

VENV=${ZLAYER_VENV:-$PWD/.venv}

BOLD='' BLUE='' FAINT='' PLAIN='' # colours are for terminals: of stderr here, the demo asks for stdout
if [[ -t 2 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then BOLD=$'\033[1m' PLAIN=$'\033[0m'; fi

say() { printf '%s== %s%s\n' "$BOLD" "$*" "$PLAIN" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# misuse TEXT: the command line is wrong.
misuse() { printf '%s: %s; --help names the options\n' "${0##*/}" "$*" >&2; exit 2; }
# usage: the comment at the top of the script.
usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "${BASH_SOURCE[0]%/*}/${0##*/}"; }

# at_exit COMMAND: run it when the script ends, the last one first.
AT_EXIT=()
at_exit() { AT_EXIT=("$1" "${AT_EXIT[@]}"); }
leave() {
    local todo
    for todo in "${AT_EXIT[@]}"; do eval "$todo" || true; done
    give_to_owner || true
}
trap leave EXIT

# give_to_owner: what root made in another user's clone becomes the owner's, who could neither replace nor remove it.
# Of files with several links one may lie outside.
give_to_owner() {
    [[ $(id -u) == 0 && $(stat -c %u .) != 0 && -e scripts/common.sh ]] || return 0
    find . -xdev -user 0 \( -type d -o -links 1 \) -exec chown -h --reference=. {} +
}

# as_owner COMMAND...: in place of this process, as the owner of the clone, if this is root in another user's clone.
as_owner() {
    local uid home
    uid=$(stat -c %u .)
    [[ $(id -u) == 0 && $uid != 0 ]] || return 0
    give_to_owner
    home=$(getent passwd "$uid" | cut -d: -f6)
    [[ -n $home && -d $home && $(stat -c %u "$home") == "$uid" ]] || home=$PWD/build
    unset XDG_CACHE_HOME
    HOME=$home exec setpriv --reuid "$uid" --regid "$(stat -c %g .)" --clear-groups "$@"
}

# need COMMAND PACKAGE [COMMAND PACKAGE ...]: install the packages of the commands (or files) that are not there.
need() {
    local missing=()
    while (($#)); do
        if [[ $1 == /* ]]; then [[ -e $1 ]] || missing+=("$2")
        else PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null || missing+=("$2"); fi
        shift 2
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || { say "not a Debian system: please install ${missing[*]}"; return 1; }
    say "installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # policy-rc.d: a test machine's packages must not start services of their own.
    local policy=/usr/sbin/policy-rc.d made=
    [[ -e $policy ]] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy && made=1; }
    local log code=0
    log=$(mktemp -t zlayer-cni-apt.XXXXXX)
    { apt-get install -y -qq --no-install-recommends "${missing[@]}" ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; }; } >"$log" 2>&1 || code=1
    [[ $code == 0 ]] || cat "$log" >&2
    [[ -z $made ]] || rm -f $policy
    rm -f "$log"
    return $code
}

# need_python: Python with its venv module and the shared library that freezing it takes.
need_python() {
    need python3 python3 || return 1
    python3 -c 'import ensurepip, venv' 2>/dev/null || need /nonexistent python3-venv || return 1
    local version
    version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    PATH=$PATH:/usr/sbin:/sbin ldconfig -p | grep -q "libpython$version\.so" ||
        compgen -G "$(python3 -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')/libpython$version.so*" >/dev/null ||
        need /nonexistent "libpython$version"
}

# locked FILE...: the packages of requirements/FILE.txt in the virtual environment, each verified by its hash. They are
# installed anew when the file is another one than last time: what was there before was verified by nothing.
locked() {
    local file sum
    for file in "$@"; do
        sum=$(sha256sum <"requirements/$file.txt")
        [[ $(cat "$VENV/.locked-$file" 2>/dev/null) != "$sum" ]] || continue
        say "installing into $VENV what requirements/$file.txt names"
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: \
            --force-reinstall --requirement "requirements/$file.txt" || return 1
        printf '%s\n' "$sum" >"$VENV/.locked-$file"
    done
}
