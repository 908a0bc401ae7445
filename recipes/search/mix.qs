qspec 1

# W4A4 where it is safe and W8A8 where it is not, behind rotations, on a small model.
param seed  = 0
param draws = 2

recipe search_mix {
  family llada, dream
  model  "GSAI-ML/LLaDA-8B-Base"
}

calibrate {
  text    "wikitext2"
  samples 8
  length  128
  mask    uniform(0.0, 1.0)
  seed    $seed
}

scheme w4a4 {
  weights     int4 per channel symmetric
  activations int4 per token   symmetric clip 0.9
}

scheme w8a8 {
  weights     int8 per channel symmetric
  activations int8 per token   symmetric
}

layers blocks[*].*     use w4a4
layers head, embedding keep

apply smooth(alpha = 0.6)                    on blocks[*].*
apply rotate_duquant(block = 32, steps = 32) on blocks[*].*
apply gptq(damp = 0.01, order = activation)  on blocks[*].*

search {
  offer   w4a4, w8a8 on blocks[*].*
  loss    kl on "wikitext2"
  samples 8
  length  128
  draws   $draws
  refine  8
  seed    $seed
}

evaluate {
  nelbo on "wikitext2" samples 48
}
