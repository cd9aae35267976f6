"""What touches the disk and knows no diffusion; imports nothing of ours.

whole     files that are whole or not there, their SHA-256, what readers of damaged files raise
fetch     downloads: resumed, verified
images    sets of images: .npz files, grids
pictures  folders of pictures: PNG, JPEG, WebP
videos    H.264 in .mp4 files
media     what a folder of samples holds: images or videos
prompts   text files of prompts
places    where the repository and its downloads lie
threads   how threads wait and what becomes of freed memory: the one thing here that is no file
"""
