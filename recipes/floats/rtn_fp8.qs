qspec 1

# W8A8 in fp8 (e4m3): on the tensor cores from compute capability 8.9 on, as float16 below.
extends "../paper/base/setup.qs"

recipe rtn_fp8 {
}

scheme fp8 {
  weights     fp8_e4m3 per channel
  activations fp8_e4m3 per token
}

layers blocks[*].* use fp8

apply rtn() on blocks[*].*
