qspec 1

# Weight-only search on a small model: bits and groups. Uniform schemes of 2.5, 3.5 and 4.25 bits are among the choices.
param seed  = 0
param draws = 2

recipe search_weights {
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

scheme w2g64 {
  weights     int2 per group 64 symmetric
  activations none
}

scheme w2g32 {
  weights     int2 per group 32 symmetric
  activations none
}

scheme w3g64 {
  weights     int3 per group 64 symmetric
  activations none
}

scheme w3g32 {
  weights     int3 per group 32 symmetric
  activations none
}

scheme w4g64 {
  weights     int4 per group 64 symmetric
  activations none
}

scheme w8g64 {
  weights     int8 per group 64 symmetric
  activations none
}

layers blocks[*].*     use w4g64
layers head, embedding keep

apply gptq(damp = 0.01, order = activation) on blocks[*].*

search {
  offer   w2g64, w2g32, w3g64, w3g32, w4g64, w8g64 on blocks[*].*
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
