#!/usr/bin/env bash
# Everything that is to be known on a GPU, in about a quarter of an hour: `bash benchmarks/gpu.sh FOLDER [PART...]`.
# Parts, in order of worth: decode serve startup attention tests paths steps rotation kv8 flags clusters weights linear kernels sanitize; without
# names all of them. Results and logs go to FOLDER. Every part has its own time limit, so that one that hangs does not cost the rest.
set -u
cd "$(dirname "$0")/.."
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
export PYTHONUNBUFFERED=1

run() { # run NAME SECONDS COMMAND...
    local name=$1 seconds=$2
    shift 2
    timeout "$seconds" "$@" >"$out/$name.log" 2>&1
    echo "== $name: exit $?"
    tail -n 25 "$out/$name.log" | cut -c1-200
}

part() {
    case $1 in
    decode)
        run decode-d32 90 python3 -m benchmarks.decode --model-size d32 --workload seed8,one,streams,c256 \
            --streams 64,256 --profile 1,64,256 --out "$out/decode-d32.json"
        run decode-llama 60 python3 -m benchmarks.decode --model-size llama-d32 --workload seed8,one,streams,c256 \
            --streams 64,256 --out "$out/decode-llama.json"
        run decode-qwen 70 python3 -m benchmarks.decode --model-size qwen3-0.6b --workload qwen,one \
            --out "$out/decode-qwen.json"
        ;;
    serve)
        run serve-d32 90 python3 -m benchmarks.serve --load peers --model-size d32 --device cuda \
            --dtype bfloat16 --out "$out/serve-d32.json"
        run serve-long-prompt 60 python3 -m benchmarks.serve --scenario long-prompt --model-size d32 \
            --device cuda --dtype bfloat16 --out "$out/serve-long-prompt.json"
        ;;
    startup)
        run startup 150 python3 -m benchmarks.startup --model-size d32 --device cuda --out "$out/startup.json"
        ;;
    attention)
        run attention 80 python3 -m benchmarks.attention --seconds 60 --out "$out/attention.json"
        ;;
    tests)
        run tests-kernels 200 python3 -m pytest -q tests/gpu/test_loader.py tests/gpu/test_kernels.py \
            tests/gpu/test_skinny.py tests/gpu/test_streamed.py tests/gpu/test_gemm.py
        run tests-engine 400 python3 -m pytest -q --tb=short tests/gpu/test_engine.py tests/gpu/test_growth.py
        run tests-rest 200 python3 -m pytest -q --tb=short tests/gpu/test_deep.py tests/gpu/test_graphs.py tests/gpu/test_weights8.py \
            tests/gpu/test_te.py
        ;;
    paths)
        run tests-paths 400 python3 -m pytest -q --tb=short tests/gpu/test_decode_step.py tests/gpu/test_path_noise.py tests/gpu/test_paths.py
        run decode-paths 200 python3 -m benchmarks.decode --model-size d32 --path graph,chained,persistent \
            --out "$out/decode-paths.json"
        ;;
    steps)
        run steps 60 python3 -m benchmarks.steps --rows 1,2,4,8 --pace 700,800,900 --out "$out/steps.json"
        run steps-trace 60 python3 -m benchmarks.steps --rows 1,4 --trace --out "$out/steps-trace.json"
        run steps-fp8 60 python3 -m benchmarks.steps --weights fp8 --rows 1,4 --trace --out "$out/steps-fp8.json"
        ;;
    rotation)
        run tests-rotation 120 python3 -m pytest -q --tb=short tests/gpu/test_rotation.py
        run attention-rotation 50 python3 -m benchmarks.attention --only rotation --kv-dtype bf16,fp8 \
            --shapes 8x128,8x512,32x256,64x256,64x1024,256x128 --out "$out/attention-rotation.json"
        run attention-steps 90 python3 -m benchmarks.attention_steps --rows 1,4,8,16,32,64 --kv-dtype bf16,fp8 \
            --out "$out/attention-steps.json"
        for attention in triton triton-rotating; do
            run "decode-$attention" 50 python3 -m benchmarks.decode --model-size d32 --workload streams --streams 4,8,64 \
                --engine "attention_backend=$attention" --out "$out/decode-$attention.json"
        done
        ;;
    sanitize)
        run sanitize 160 python3 -m tests.gpu.sanitize
        ;;
    linear)
        run linear 100 python3 -m benchmarks.linear --out "$out/linear.json"
        run linear-medium 60 python3 -m benchmarks.linear --medium --out "$out/linear-medium.json"
        ;;
    flags)
        run flags 100 python3 -m benchmarks.flags --workload all --batch-size 2 --prompt-len 256 --decode-len 64 \
            --iters 2 --reuse-ids-buffer --model-size d32 --out "$out/flags.json"
        ;;
    clusters)
        run tests-clusters 150 python3 -m pytest -q --tb=short tests/gpu/test_cluster.py
        run clusters 60 python3 -m benchmarks.cluster --quick --seconds 50 --out "$out/clusters.json"
        ;;
    weights)
        run accuracy 60 python3 -m benchmarks.accuracy --streams "" --out "$out/accuracy.json"
        run accuracy-d32 80 python3 -m benchmarks.accuracy --model-size d32 --tokens 4096 --out "$out/accuracy-d32.json"
        ;;
    kv8)
        run tests-kv8 300 python3 -m pytest -q --tb=short tests/gpu/test_kv8.py
        run attention-kv8 80 python3 -m benchmarks.attention --kv-dtype bf16,fp8 --only decode --quick --out "$out/attention-kv8.json"
        for kv in bf16 fp8; do
            run "decode-context1k-$kv" 70 python3 -m benchmarks.decode --model-size d32 --workload context1k \
                --engine prefill_stretch=0 --engine "kv_dtype=$kv" --max-rows 64 --out "$out/decode-context1k-$kv.json"
        done
        run accuracy-kv8 60 python3 -m benchmarks.accuracy --systems full,kv8 --streams "" --out "$out/accuracy-kv8.json"
        ;;
    kernels)
        run kernels 70 python3 -m benchmarks.kernels --out "$out/kernels.json"
        ;;
    *) echo "there is no part $1" >&2 ;;
    esac
}

for name in "${@:-decode serve startup attention tests paths steps rotation kv8 flags clusters weights linear kernels sanitize}"; do
    for one in $name; do part "$one"; done
done
