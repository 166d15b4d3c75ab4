#!/usr/bin/env bash
# The GPU tests and all comparisons, in ten minutes on one GPU: bash benchmarks/gpu.sh [--device cpu --quick]
# Results go to $OUT. Every step has its time, and when one fails the others go on; the last lines say which.
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
END=$((SECONDS + 570))
SITE=$(mktemp -d)
BUILT=$(mktemp -d)
export PYTHONUNBUFFERED=1 TORCH_EXTENSIONS_DIR=$BUILT
export PYTHONPATH=$PWD:$SITE:$PWD/.peers:$BUILT/selective_scan_cuda${PYTHONPATH:+:$PYTHONPATH}
failed=()

# step NAME SECONDS COMMAND...: as long as that, or as is left.
step() {
    local name=$1 limit=$(($2 < END - SECONDS ? $2 : END - SECONDS)) status=0 start=$SECONDS
    shift 2
    echo "=== $name"
    if ((limit > 0)); then timeout --kill-after=5 "$limit" "$@" || status=$?; else status=124; fi
    ((status == 0)) || failed+=("$name (status $status)")
    echo "=== $name: $((SECONDS - start)) s"
}

main() {
    if compgen -G '.whl/*.whl' >/dev/null; then
        step 'install' 60 "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
            --target "$SITE" .whl/*.whl
    else
        echo 'no wheels in .whl: what is not installed is left out'
    fi

    builds=()
    if command -v nvcc >/dev/null && [[ " $* " != *' cpu '* ]]; then
        (timeout 200 "$PYTHON" benchmarks/build_peers.py warp >"$BUILT/warp.log" 2>&1) &
        builds+=("$!:warp")
        if [[ -d .peers/selective_scan ]]; then
            (MAX_JOBS=12 timeout 200 "$PYTHON" benchmarks/build_peers.py .peers/selective_scan >"$BUILT/mamba.log" 2>&1) &
            builds+=("$!:mamba")
        else
            echo 'no sources of mamba-ssm in .peers/selective_scan: it is left out'
        fi
        if [[ -d $SITE/flashrnn ]]; then
            for backend in cuda cuda_fused; do
                (timeout 200 "$PYTHON" benchmarks/build_peers.py flashrnn $backend >"$BUILT/flashrnn-$backend.log" 2>&1) &
                builds+=("$!:flashrnn-$backend")
            done
            export SLOW=built
        fi
    fi

    local tests
    tests=$(grep -ls 'mark\.gpu' tests/test_*.py)
    if [[ -n $tests ]]; then
        # shellcheck disable=SC2086
        step 'GPU tests' 130 "$PYTHON" -m pytest -q -m gpu -n 8 --dist worksteal -p no:cacheprovider $tests
    else
        failed+=('GPU tests (there are none)')
    fi

    for build in ${builds[@]+"${builds[@]}"}; do
        if ! wait "${build%%:*}"; then
            failed+=("build of ${build##*:}")
            tail -n 5 "$BUILT/${build##*:}.log"
            # Or an import would try again, or wait for the lock of a build that was stopped.
            case ${build##*:} in
            warp) rm -f "$SITE/accelerated_scan/warp.py" ;;
            flashrnn-*) unset SLOW ;;
            esac
        fi
    done

    compare mingru 65 "$@"
    compare matrix 80 "$@"
    compare delta 65 "$@"
    compare recurrent 60 "$@"
    compare mamba 50 "$@"
    compare hgrn 45 "$@"
    compare lru 35 "$@"
    compare families 40 "$@"
    "$PYTHON" benchmarks/report.py "$OUT"/{mingru,matrix,delta,recurrent,mamba,hgrn,lru,families}.json >"$OUT/tables.md" || failed+=('report')
    local device=cuda lengths=1024,4096,16384
    [[ " $* " != *' cpu '* ]] || device=cpu lengths=16,64
    step 'rnnc bench' 45 "$PYTHON" -m rnnc bench benchmarks/cells/mingru.rnn --device "$device" --lengths "$lengths" \
        --seconds 8 --json "$OUT/bench.json" --plot "$OUT/bench.png"

    echo
    if ((${#failed[@]})); then
        printf 'FAILED: %s\n' "${failed[@]}"
        return 1
    fi
    echo 'all steps done'
}

compare() {
    local name=$1 limit=$2
    shift 2
    step "$name" "$limit" "$PYTHON" benchmarks/"$name".py --json "$OUT/$name.json" --seconds $((limit - 25)) "$@"
}

main "$@" 2>&1 | tee "$OUT/gpu.log"
