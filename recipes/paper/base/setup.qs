qspec 1

# What every cell of the tables of "Quantization Meets dLLMs" (arXiv 2508.14896) has in common. The paper calibrates on
# clean text; `--set masked=1.0` calibrates on text as the model sees it while it denoises, masked at a share U(0, 1).
param masked = 0.0 in 0.0..1.0
param seed   = 0

recipe setup {
  family llada, dream
  model  "GSAI-ML/LLaDA-8B-Base"
}

calibrate {
  text    "wikitext2"
  samples 128
  length  2048
  mask    uniform(0.0, $masked)  # allow QS061: the paper calibrates on clean text
  seed    $seed
}

layers head, embedding keep

evaluate {
  nelbo on "wikitext2" samples 64
  task  mmlu
  task  arc_easy
  task  arc_challenge
  task  hellaswag
  task  piqa
  task  winogrande
  task  gsm8k
  task  math
  task  humaneval
  task  mbpp
}

emit {
  kernels triton for sm_90, sm_80
  regime  block_decode, full_sequence
}
