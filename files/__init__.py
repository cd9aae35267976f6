"""What touches the disk and knows no diffusion; imports nothing of ours.

whole     files that are whole or not there, what tells a damaged one, their SHA-256
npz       arrays in .npz files: every byte that is read is checked, nothing is unpickled
fetch     downloads: resumed, verified
images    sets of images: .npz files, grids
pictures  folders of pictures: PNG, JPEG, WebP
videos    H.264 in .mp4 files
media     what a folder of samples holds: images or videos
prompts   text files of prompts
places    where the repository and its downloads lie
threads   how threads wait and what becomes of freed memory: the one thing here that is no file
"""
