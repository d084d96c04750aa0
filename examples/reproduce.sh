#!/usr/bin/env bash
# Reproduces the figures and tables of the SPARCOM paper; docs/reproduce-the-paper.md explains each step.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: examples/reproduce.sh [--gpus N] [--output DIR] [--dry-run] [--tiny]

Builds the instructions, extracts eight archives, verifies them and writes the report. Skips steps that have finished.

  --gpus N      Extract on N GPUs at once (default: 1); with --tiny: run N CPU engines at once.
  --output DIR  Write everything to DIR (default: reproduction; with --tiny: reproduction-tiny).
  --dry-run     Print every command; run none.
  --tiny        Make tiny models and run them instead of the paper's. Needs two CPU cores and no GPU.
USAGE
}

wrong_usage() {
    echo "error: $1; see --help" >&2
    exit 2
}

folder='' gpus=1 dry_run='' tiny=''
while [ $# -gt 0 ]; do
    case $1 in
        --gpus | --output)
            [ $# -gt 1 ] || wrong_usage "$1 needs a value"
            if [ "$1" = --gpus ]; then gpus=$2; else folder=${2%/}; fi
            shift
            ;;
        --dry-run) dry_run=yes ;;
        --tiny) tiny=yes ;;
        -h | --help)
            usage
            exit
            ;;
        *) wrong_usage "unknown argument '$1'" ;;
    esac
    shift
done
[[ $gpus =~ ^[1-9][0-9]?$ ]] || wrong_usage "--gpus must be 1 to 99; it is '$gpus'"
folder=${folder:-reproduction${tiny:+-tiny}}
[[ ! $folder =~ [[:space:]:] ]] || wrong_usage "--output must have no space and no colon; it is '$folder'"

# If `sparcom` is not on the PATH, use the one that `make setup` installed in this checkout.
if ! command -v sparcom >/dev/null; then PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH"; fi

# Base and fine-tuned model of each pair.
if [ -n "$tiny" ]; then
    pairs=(
        "$folder/models/tiny-llama $folder/models/tiny-llama-tuned"
        "$folder/models/tiny-llama-deep $folder/models/tiny-llama-deep-tuned"
        "$folder/models/tiny-mistral $folder/models/tiny-mistral-tuned"
        "$folder/models/tiny-qwen2-moe $folder/models/tiny-qwen2-moe-tuned"
    )
    extract_options=(--kv-cache-gib 0.25)
    verify_options=(--reference transformers --sample 6)
else
    pairs=(
        "meta-llama/Llama-2-7b-hf meta-llama/Llama-2-7b-chat-hf"
        "meta-llama/Llama-2-13b-hf meta-llama/Llama-2-13b-chat-hf"
        "mistralai/Mistral-7B-v0.1 mistralai/Mistral-7B-Instruct-v0.1"
        "Qwen/Qwen1.5-MoE-A2.7B Qwen/Qwen1.5-MoE-A2.7B-Chat"
    )
    extract_options=()
    verify_options=()
fi
read -ra models <<<"${pairs[*]}"
instructions=$folder/hexainst.jsonl

archive() { # MODEL: print the path of its archive
    echo "$folder/archives/${1##*/}.zarr"
}

# step OUTPUT COMMAND…: run a command, unless the same one has made OUTPUT before.
step() {
    local output=$1 finished=$folder/.finished
    shift
    if [ -n "$dry_run" ]; then
        echo "$*"
        return
    fi
    if [ -e "$output" ] && [ "$(cat "$finished/${output##*/}" 2>/dev/null)" = "$*" ]; then
        echo "finished before: $*"
        return
    fi
    echo "\$ $*"
    case $output in
        # Left by an interrupted run: `extract` refuses an existing archive. Later steps must run again.
        "$folder"/archives/*.zarr) rm -rf "$output" "$finished"/{archives,report} ;;
    esac
    "$@"
    echo "$*" >"$finished/${output##*/}"
}

make_tiny_models() {
    local training=$folder/training.jsonl base kind
    step models/smollm2-135m-instruct sparcom model fetch smollm2-135m-instruct # tiny models take its tokenizer
    step "$training" sparcom dataset build --synthetic-only --skip 4 --per-category 8 --output "$training"
    for base in "${models[@]}"; do
        kind=${base##*/tiny-}
        case $kind in
            *-tuned)
                step "$base" sparcom model tune --model "${base%-tuned}" --data "$training" --output "$base" \
                    --learning-rate 0.001
                ;;
            llama-deep) step "$base" sparcom model tiny llama --layers 5 --seed 1 --output "$base" ;;
            mistral) step "$base" sparcom model tiny mistral --seed 2 --output "$base" ;; # same as LLaMA except for the seed
            *) step "$base" sparcom model tiny "$kind" --output "$base" ;;
        esac
    done
}

extract_on() { # GPU: extract models GPU, GPU + gpus, … of the list
    local place model visible=()
    if [ "$gpus" -gt 1 ]; then visible=(env "CUDA_VISIBLE_DEVICES=$1"); fi
    for ((place = $1; place < ${#models[@]}; place += gpus)); do
        model=${models[place]}
        step "$(archive "$model")" ${visible[@]+"${visible[@]}"} sparcom extract --model "$model" \
            --input "$instructions" --output "$(archive "$model")" ${extract_options[@]+"${extract_options[@]}"}
    done
}

extract_all() { # on every GPU at once; the output of each is in a log
    local gpu log failed='' jobs=()
    if [ "$gpus" -eq 1 ]; then
        extract_on 0
        return
    fi
    if [ -n "$dry_run" ]; then
        for ((gpu = 0; gpu < gpus; gpu++)); do extract_on "$gpu"; done
        return
    fi
    set -m # each job is a process group, so that an interrupt can end its engine too
    trap 'kill -- "${jobs[@]/#/-}" 2>/dev/null; exit 130' INT TERM
    for ((gpu = 0; gpu < gpus; gpu++)); do
        log=$folder/extract-gpu-$gpu.log
        echo "extracting on GPU $gpu; log: $log"
        extract_on "$gpu" >"$log" 2>&1 &
        jobs+=($!)
    done
    for gpu in "${!jobs[@]}"; do
        if ! wait "${jobs[gpu]}"; then
            failed=yes
            tail -n 20 "$folder/extract-gpu-$gpu.log" >&2
        fi
    done
    trap - INT TERM
    set +m
    if [ -n "$failed" ]; then
        echo "error: an extraction failed; fix the cause and run this script again" >&2
        exit 1
    fi
}

show_results() { # the files of each figure and table; all must exist
    local dense moe missing='' line
    dense=${pairs[0]%% *} moe=${pairs[3]%% *}
    dense=$(tr '[:upper:]' '[:lower:]' <<<"${dense##*/}")
    moe=$(tr '[:upper:]' '[:lower:]' <<<"${moe##*/}")
    while read -r line; do
        echo "# $line"
        if [ -z "$dry_run" ] && [ ! -s "${line#*: }" ]; then missing+=" ${line#*: }"; fi
    done <<RESULTS
Figure 3: $folder/report/figures/similarity.svg
Figure 4: $folder/report/$moe/figures/tuned-routing_correlation.svg
Figure 5: $folder/report/figures/layers.svg
Figure 6: $folder/report/$dense/figures/venn.svg
Table 1: $folder/report/tables/finetuning_jaccard.tex
Table 2: $folder/report/$moe/tables/finetuning_correlation.tex
Table 6: $folder/report/$moe/tables/finetuning_top_experts-table_6.tex
RESULTS
    if [ -n "$missing" ]; then
        echo "error: the report must hold every figure and table; these are missing:$missing" >&2
        exit 1
    fi
}

if [ -z "$dry_run" ]; then
    mkdir -p "$folder"/{archives,models,.finished}
    echo '*' >"$folder/.gitignore"
fi
if [ -n "$tiny" ]; then
    make_tiny_models
    step "$instructions" sparcom dataset build --synthetic-only --per-category 4 --output "$instructions"
else
    step "$instructions" sparcom dataset build --output "$instructions"
fi
extract_all
archives=() compared=()
for pair in "${pairs[@]}"; do
    base=$(archive "${pair% *}") tuned=$(archive "${pair#* }")
    archives+=("$base" "$tuned")
    compared+=("$base:$tuned")
done
step "$folder/archives" sparcom verify "${archives[@]}" ${verify_options[@]+"${verify_options[@]}"}
step "$folder/report" sparcom analyze "${compared[@]}" --output "$folder/report"
show_results
