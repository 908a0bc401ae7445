qspec 1

# Dense block-diffusion models: blocks are noised at a share U(0, 1) and calibrated behind clean ones, as they generate.
param seed = 0

recipe setup {
  family fast_dllm, sdar
  model  "JetLM/SDAR-1.7B-Chat"
}

calibrate {
  text    "wikitext2"
  samples 128
  length  2048
  mask    uniform(0.0, 1.0)
  seed    $seed
}

layers head, embedding keep

evaluate {
  nelbo on "wikitext2" samples 64
  task  mmlu
  task  gsm8k { shots 4  length 256  steps 256 }
  task  humaneval { length 512  steps 512 }
}

emit {
  kernels triton for sm_90, sm_80
  regime  block_decode, full_sequence
}
