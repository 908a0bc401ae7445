qspec 1
# café
