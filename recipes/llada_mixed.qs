qspec 1

# Mixed precision for LLaDA-8B: 4 bits where they are safe, 8 where outliers gather, one layer left alone.
recipe llada_mixed {
  family llada
  model  "GSAI-ML/LLaDA-8B-Instruct" revision "main"
}

calibrate {
  text    "wikitext2"
  samples 128
  length  2048
  mask    uniform(0.0, 1.0)  # share of tokens masked, drawn per sample
  seed    0
}

scheme w4a4 {
  weights     int4 per channel symmetric clip mse
  activations int4 per token   symmetric clip 0.9
}

scheme w8a8 {
  weights     int8 per channel symmetric
  activations int8 per token   symmetric
}

layers blocks[*].*                 use w4a4
layers blocks[*].attention.{v,o}   use w8a8  # what is written to the residual stream
layers blocks[*].mlp.down          use w8a8  # massive activations live at its input
layers blocks[0].{attention,mlp}.* use w8a8
layers blocks[-1].mlp.down         keep
layers head, embedding             keep

apply smooth(alpha = 0.6)                      on blocks[*].*
apply rotate_duquant(block = 128, steps = 256) on blocks[*].*
apply gptq(damp = 0.01, order = activation)    on blocks[*].*

evaluate {
  nelbo on "wikitext2" samples 64
  task  mmlu
  task  gsm8k { shots 4  length 256  steps 256  block 32 }
  task  humaneval { length 512  steps 512  block 32 }
}

emit {
  kernels triton for sm_90, sm_80
  regime  block_decode, full_sequence  # the numbers of tokens that a forward pass will carry
}
