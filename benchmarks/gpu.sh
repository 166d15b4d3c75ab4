#!/usr/bin/env bash
# The GPU tests and all comparisons, in ten minutes on one GPU: bash benchmarks/gpu.sh [--device cpu --quick]
# $TIME is how many seconds there are for all of it. Steps share them, what matters most first: each takes as long as it
# may, and leaves to those behind it what they need at least. When one fails, or is stopped, the others go on; the last
# lines say which. Results go to $OUT after each step, in few files, for so few come back from some machines: gpu.log,
# tables.md, results.tgz (a JSON for each comparison), bench.png.
#
# On a machine that reaches no registry, carry what it lacks in two folders here that git ignores. Wheels, which are found
# in .whl (pure Python, but for cuda-core, which goes with the cuda-bindings that torch has beside it; torch, triton,
# numpy, jinja2, networkx, sympy, pytest and hypothesis must be there):
#
#   printf '/.whl/\n/.peers/\n' >> .git/info/exclude
#   python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#       --platform manylinux_2_28_x86_64 -d .whl \
#       lark==1.3.1 fla-core==0.6.0 einops==0.8.2 packaging==26.3 accelerated-scan==0.3.1 minGRU-pytorch==0.2.1 \
#       mlstm-kernels==2.0.6 cuda-core==1.2.2 flashrnn==1.0.5
#
# And mamba-ssm's scan, which is no wheel: its folder csrc/selective_scan (github.com/state-spaces/mamba; tried e9594ce)
# as .peers/selective_scan. It is compiled there, with nvcc, while the tests run; so are accelerated-scan's CUDA scan
# and FlashRNN for two sizes. Mamba's SSD is Triton: its folder mamba_ssm without the __init__.py at its top, as
# .peers/mamba_ssm.

set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-$(mktemp -d)}
TIME=${TIME:-570}
END=$((SECONDS + TIME))
SITE=$(mktemp -d)
BUILT=$(mktemp -d)
FOUND=$(mktemp -d)
mkdir "$FOUND/bench"
export PYTHONUNBUFFERED=1 TORCH_EXTENSIONS_DIR=$BUILT
export PYTHONPATH=$PWD:$SITE:$PWD/.peers:$BUILT/selective_scan_cuda${PYTHONPATH:+:$PYTHONPATH}
failed=()

# The steps in their order, with the seconds of 570 that each may take and those that it needs.
STEPS=(install tests builds mingru families matrix delta recurrent mamba lru hgrn bench)
declare -A MOST=([install]=60 [tests]=130 [builds]=75 [mingru]=65 [families]=40 [matrix]=80 [delta]=65 [recurrent]=60
    [mamba]=50 [lru]=35 [hgrn]=45 [bench]=45)
declare -A LEAST=([install]=20 [tests]=90 [builds]=5 [mingru]=35 [families]=25 [matrix]=45 [delta]=35 [recurrent]=40
    [mamba]=25 [lru]=20 [hgrn]=20 [bench]=20)

# share NAME: how many seconds a step has.
share() {
    local left=$((END - SECONDS)) most=$((MOST[$1] * TIME / 570)) name behind=
    for name in "${STEPS[@]}"; do
        [[ -z $behind ]] || left=$((left - LEAST[$name] * TIME / 570))
        [[ $name != "$1" ]] || behind=yes
    done
    echo $((left < most ? left > 0 ? left : 0 : most))
}

# step NAME LIMIT COMMAND...
step() {
    local name=$1 limit=$2 status=0 start=$SECONDS
    shift 2
    echo "=== $name: at most $limit s"
    if ((limit > 0)); then timeout --kill-after=5 "$limit" "$@" || status=$?; else status=124; fi
    ((status == 0)) || failed+=("$name (status $status)")
    collect
    echo "=== $name: $((SECONDS - start)) s"
}

# What was measured so far, where it is brought back from.
collect() {
    if compgen -G "$FOUND/*.json" >/dev/null; then
        "$PYTHON" benchmarks/report.py "$FOUND"/*.json >"$OUT/tables.md" || failed+=('report')
    fi
    tar -czf "$OUT/results.tgz" -C "$FOUND" .
}

# build NAME ARGUMENTS...: a peer, while other steps go on.
build() {
    timeout 200 "$PYTHON" benchmarks/build_peers.py "${@:2}" >"$BUILT/$1.log" 2>&1 &
    builds+=("$!:$1")
}

main() {
    if compgen -G '.whl/*.whl' >/dev/null; then
        step install "$(share install)" "$PYTHON" -m pip install -q --no-index --no-deps --no-compile \
            --no-cache-dir --upgrade --target "$SITE" .whl/*.whl
    else
        echo 'no wheels in .whl: what is not installed is left out'
    fi

    builds=()
    if command -v nvcc >/dev/null && [[ " $* " != *' cpu '* ]]; then
        build warp warp
        if [[ -d .peers/selective_scan ]]; then
            MAX_JOBS=12 build mamba .peers/selective_scan
        else
            echo 'no sources of mamba-ssm in .peers/selective_scan: it is left out'
        fi
        if [[ -d $SITE/flashrnn ]]; then
            for backend in cuda cuda_fused; do
                build "flashrnn-$backend" flashrnn $backend
            done
            export SLOW=built
        fi
    fi

    local tests
    tests=$(grep -ls 'mark\.gpu' tests/test_*.py)
    if [[ -n $tests ]]; then
        # shellcheck disable=SC2086
        step tests "$(share tests)" "$PYTHON" -m pytest -q -m gpu -n 8 --dist worksteal -p no:cacheprovider $tests
    else
        failed+=('tests (there are none)')
    fi

    local made until=$((SECONDS + $(share builds)))
    for made in ${builds[@]+"${builds[@]}"}; do
        while ((SECONDS < until)) && kill -0 "${made%%:*}" 2>/dev/null; do sleep 1; done
        kill "${made%%:*}" 2>/dev/null
        if ! wait "${made%%:*}"; then
            failed+=("build of ${made##*:}")
            tail -n 5 "$BUILT/${made##*:}.log"
            # Or an import would try again, or wait for the lock of a build that was stopped.
            case ${made##*:} in
            warp) rm -f "$SITE/accelerated_scan/warp.py" ;;
            flashrnn-*) unset SLOW ;;
            esac
        fi
    done

    local name limit
    for name in "${STEPS[@]:3:8}"; do
        limit=$(share "$name")
        # Importing, compiling and what is being timed when time is up take the rest.
        step "$name" "$limit" "$PYTHON" "benchmarks/$name.py" --json "$FOUND/$name.json" --seconds $((limit * 2 / 3)) "$@"
    done
    local device=cuda lengths=1024,4096,16384
    [[ " $* " != *' cpu '* ]] || device=cpu lengths=16,64
    step bench "$(share bench)" "$PYTHON" -m rnnc bench benchmarks/cells/mingru.rnn --device "$device" \
        --lengths "$lengths" --seconds 8 --json "$FOUND/bench/bench.json" --plot "$OUT/bench.png"

    echo
    if ((${#failed[@]})); then
        printf 'FAILED: %s\n' "${failed[@]}"
        return 1
    fi
    echo 'all steps done'
}

main "$@" 2>&1 | tee "$OUT/gpu.log"
