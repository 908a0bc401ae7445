qspec 1

param bits  = 8 in 2..8
param alpha = 0.5
param where = "wikitext2"

recipe r {
  family llada
  model  "m" revision "main"
}

calibrate {
  text    $where
  samples 8
  mask    grid(0.25, 0.75)
  draws   2
  weigh   certainty, masked 1.0, unmasked $alpha
}

scheme w8a8 {
  weights     int($bits) per group 128 asymmetric clip mse
  activations int8       per token     symmetric  clip 0.9
}

scheme w4a16 {
  weights     int4 per channel
  activations none
}

layers blocks[*].{attention,mlp}.*        use w8a8
layers blocks[0, 4..7, -1].mlp.{gate,up}  use w4a16
layers module("model.transformer.ff_out") keep  # the head

apply smooth(alpha = $alpha) on blocks[*].*
apply gptq(order = natural)  on blocks[*].*

search {
  offer   w8a8, w4a16, keep on blocks[*].*
  offer   w8a8 on blocks[0].mlp.down
  budget  4.25 bits, 5 GiB, 6 GiB memory, $alpha ms for block_decode
  loss    kl on "wikitext2"
  samples 8
  probe   forward
  fused   true
}

evaluate {
  nelbo on file("x.jsonl", field = "text") samples 4
  task  gsm8k { shots 4  length 64  steps 64  block 32  chat off }
  require nelbo loss <= 2 %
  require gsm8k loss <= 3 points
}

emit {
  kernels triton for sm_90
  regime  full_sequence
}
