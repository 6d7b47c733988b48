# Shared by the scripts: talk, Debian packages, the virtual environment. Sourced, not run.

VENV=${ZLAYER_VENV:-$PWD/.venv}

say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

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
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/tmp/zlayer-cni-apt.log 2>&1 ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
            >/tmp/zlayer-cni-apt.log 2>&1 || { cat /tmp/zlayer-cni-apt.log >&2; [[ -z $made ]] || rm -f $policy; return 1; }
    [[ -z $made ]] || rm -f $policy
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
