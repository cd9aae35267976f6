"""What a machine is asked before days are spent on it: is it right, and how fast is it?

- `outcome`: what a check finds, and what is skipped because something is lacking
- `golden`: forward passes and trajectories recorded from the original code, in three precisions
- `behaviour`: samples against the CPU's, no waiting for the device, too little memory, batch sizes
- `subjects`: the networks that are timed, with random weights; `throughput`: how they are timed
- `hours`: what the tables take at these speeds
- `machine`: the record of all this, results/machines/<device>.json

Nothing here needs more than torch, NumPy, safetensors and Pillow to be imported; what a part needs
besides is imported in that part, which is skipped and named where it is lacking.
"""
