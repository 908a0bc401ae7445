"""Mixed-precision search: a scheme for every layer within a budget, written as an ordinary recipe.

space     what may be chosen, and what each choice costs, by the plan's own accounting
probes    what each choice loses, alone, on masked text
allocate  the least predicted loss within every budget (an integer program)
refine    whole layouts measured, swap by swap
recipe    the layout as rules that a person can read
"""
