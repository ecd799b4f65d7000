# syntax=docker/dockerfile:1
# bcu on a GPU host; it runs on the CPU too, where no GPU is passed in.
#   docker build -t bcu .
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PATH=/venv/bin:$PATH

# hadolint ignore=DL3008  # Ubuntu serves only the newest version of a package: a pin would break the build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /venv

# torch and its like first, from the names in pyproject.toml alone: a change of the code does not reinstall them.
WORKDIR /src
COPY pyproject.toml ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > requirements.txt \
    && pip install --no-cache-dir --requirement requirements.txt

COPY README.md LICENSE ./
COPY bcu_cli ./bcu_cli
RUN pip install --no-cache-dir --no-deps .

# Models and images are mounted read-only at /models and /images; /out is the one place to write.
RUN useradd --create-home --uid 10001 bcu \
    && install --directory --owner=bcu --group=bcu /out
USER 10001
WORKDIR /out
VOLUME ["/out"]
ENTRYPOINT ["bcu"]
CMD ["--help"]
