qspec 1

# W4A16 in mxfp4 (OCP MX): 4.25 bits a weight, scales are powers of two.
extends "../paper/base/setup.qs"

recipe gptq_mxfp4 {
}

scheme mxfp4 {
  weights     mxfp4 per group 32
  activations none
}

layers blocks[*].* use mxfp4

apply gptq(damp = 0.01, order = activation) on blocks[*].*
