# The demo in a container, without a GPU and with Docker's default shared memory of 64 MB; the report stays in demo_output:
#   docker build -t vqseg . && docker run -v $PWD/demo_output:/vqseg/demo_output vqseg
# With a GPU, workers and your own data: docker run --gpus all --shm-size 8g -v ... -e nnUNet_n_proc_DA=12 vqseg COMMAND.
# Workers that load, predict and export hand images over in shared memory; where it is too small they die with "Bus error", and
# --shm-size is what to raise. The demo trains without loading workers (below) and, where it is small, predicts without any; what
# its final validation hands over is a few megabytes.
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /vqseg
COPY . .
RUN pip install --no-cache-dir .
ENV nnUNet_n_proc_DA=0
CMD ["python", "scripts/demo.py"]
