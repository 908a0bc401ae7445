qspec 1

# W4A4 in nvfp4: a scale for every 16 channels needs no rotation, and the tensor cores of sm_100 and sm_120 take it as it is.
extends "../paper/base/setup.qs"

recipe gptq_nvfp4 {
}

scheme nvfp4 {
  weights     nvfp4 per group 16
  activations nvfp4 per group 16
}

layers blocks[*].* use nvfp4

apply gptq(damp = 0.01, order = activation) on blocks[*].*

emit {
  kernels triton for sm_100, sm_120
}
