# The demo in a container, without a GPU and with Docker's default shared memory of 64 MB:
#   docker build -t vqseg . && docker run vqseg
# With a GPU: docker run --gpus all --shm-size 8g vqseg python scripts/demo.py. nnU-Net's workers hand images over in shared memory;
# where it is too small they die with "Bus error", and --shm-size is what to raise. Without workers (below) nothing needs it.
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /vqseg
COPY . .
RUN pip install --no-cache-dir .
ENV nnUNet_n_proc_DA=0
CMD ["python", "scripts/demo.py"]
