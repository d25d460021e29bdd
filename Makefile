# make             everything the commands need: .venv, compiled kernels, the default model
# make test        the tests          make test-peers  those that need torch, PEFT or llama.cpp (own environment)
# make test-clients  the server with other people's clients: openai (Python, Node), anthropic, ollama, litellm, LangChain,
#                  schemathesis on its description, JSON Schema's own tests (own environment)
# make test-page   the chat page in a headless Chromium, skipped where there is none
# make bench       compare with them  make demo        fine-tune, generate, serve one request
# make report      the newest results of make bench into docs/performance.md and the READMEs
# make lint        ruff, cython-lint  make fuzz        100,000 damaged files against the readers
# make test-neon   the kernels' tests under qemu          make test-avx512  on any CPU, see docs/portability.md
# make mutants     break the program in one line at a time: do the tests notice?   ALL=1: compiled modules too
# make asan        kernels, formats and each command under the address and undefined-behaviour sanitizers
# make docs        write docs/commands.md, docs/models.md    make clean       remove what make made, but not models/

PYTHON = python3
VENV = .venv
PY = $(VENV)/bin/python
PIP = $(PY) -m pip install -qq --disable-pip-version-check
# pip would compile everything once more, in a folder of its own: the package is installed without its extensions,
# which lie in place already.
INSTALL = LLAMACY_ONLY=none $(PIP) --no-build-isolation -e
MODEL = models/SmolLM2-135M-Instruct.Q4_1.gguf
BENCH_PYTHON = bench/.venv/bin/python
BENCH_PIP = $(BENCH_PYTHON) -m pip --disable-pip-version-check
LLAMA_CPP_SOURCE = bench/work/llama_cpp_python.tar.gz
SOURCES = setup.py $(addprefix llamacy/kernels/,isas.py layout.py weight_types.py) $(wildcard pyx/*/*.pyx pyx/*/*.pxd pyx/*/*.tp)

all: $(VENV)/.installed $(MODEL)

$(VENV)/.packages: tools/setup_env.py
	@$(PYTHON) tools/setup_env.py $(VENV) 'setuptools>=70.1' 'cython>=3.0' 'numpy>=1.24'
	@touch $@

# The commands need the best set alone; the tests compare all that run here.
build/.compiled: $(VENV)/.packages $(SOURCES)
	@echo "make: compiling the kernels"
	@LLAMACY_BUILD_ISA=$${LLAMACY_BUILD_ISA:-best} $(PY) setup.py -q build_ext --inplace
	@touch $@

build/.compiled-all: build/.compiled
	@echo "make: compiling the kernels for the other instruction sets of this machine"
	@$(PY) setup.py -q build_ext --inplace
	@touch $@

# The extras are a comfort: without a network the commands work without them, and say so where one is needed.
$(VENV)/.installed: pyproject.toml | build/.compiled
	@$(INSTALL) '.[all]' >$(VENV)/install.log 2>&1 || \
		{ echo "make: the extras (jinja2, matplotlib, tqdm, safetensors) are not installed: see $(VENV)/install.log"; \
		$(INSTALL) . --no-deps >>$(VENV)/install.log 2>&1; } || \
		echo "make: the llamacy-* console scripts are not installed either; ./bin/* work"
	@touch $@

$(MODEL): | $(VENV)/.packages
	@$(PY) tools/fetch_model.py $@ || true

$(VENV)/.test: pyproject.toml | all build/.compiled-all
	@$(INSTALL) '.[all,test]'
	@touch $@

# Where pip's torch is a CUDA build of some gigabytes, let PIP_EXTRA_INDEX_URL name an index of CPU builds.
bench/.venv/.installed: bench/requirements.txt
	@echo "make: installing torch, PEFT and llama.cpp in bench/.venv (llama.cpp is compiled: some minutes)"
	@$(PYTHON) -m venv bench/.venv
	@CMAKE_ARGS=-DGGML_NATIVE=ON $(BENCH_PIP) install -r $< >bench/.venv/install.log 2>&1 || \
		{ tail -5 bench/.venv/install.log; echo "make: see bench/.venv/install.log" >&2; exit 1; }
	@touch $@

# llama.cpp's vocabularies with test strings, templates and converter, for the tests.
$(LLAMA_CPP_SOURCE): bench/requirements.txt | bench/.venv/.installed
	@mkdir -p $(@D)
	@$(BENCH_PIP) download -qq --no-deps --no-binary llama-cpp-python -d $(@D) $$(grep ^llama-cpp-python== $<)
	@mv $(@D)/llama_cpp_python-*.tar.gz $@
	@touch $@

# a file's tests stay together: they share what it loaded
test: all build/.compiled-all $(VENV)/.test
	@$(PY) -m pytest tests --numprocesses auto --maxprocesses 4 --dist loadfile

test-peers: all bench/.venv/.installed $(LLAMA_CPP_SOURCE)
	@PYTHONPATH=. LLAMACY_LLAMA_CPP_SOURCE=$(LLAMA_CPP_SOURCE) $(BENCH_PYTHON) -m pytest tests/peers

tests/clients/.venv/.installed: tests/clients/requirements.txt
	@echo "make: installing the clients in tests/clients/.venv"
	@$(PYTHON) -m venv tests/clients/.venv
	@tests/clients/.venv/bin/python -m pip install -qq --disable-pip-version-check -r $<
	@touch $@

# Without npm the tests of Node's client are skipped, and say so.
tests/clients/node/.installed: tests/clients/node/package.json
	@cd $(@D) && npm install --no-audit --no-fund --loglevel=error >install.log 2>&1 || true
	@touch $@

test-page: all $(VENV)/.test
	@$(PY) -m pytest -rs tests/page

test-clients: all tests/clients/.venv/.installed tests/clients/node/.installed
	@tests/clients/.venv/bin/python -m pytest -rs -p no:cacheprovider tests/clients

test-neon: all $(VENV)/.test
	@$(PY) tools/emulate.py neon

test-avx512: all $(VENV)/.test
	@$(PY) tools/emulate.py avx512

bench: all bench/.venv/.installed
	@$(PY) bench/run.py --peer-python $(BENCH_PYTHON) $(if $(IK),--ik-llama-bench $(IK)) $(BENCH)

report: all
	@$(PY) bench/report.py

demo: all
	@$(PY) tools/demo.py

lint: all $(VENV)/.test
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@PATH="$(VENV)/bin:$$PATH" cython-lint pyx

fuzz: all $(VENV)/.test
	@$(PY) -m tests.formats.fuzz 100000

asan: all $(VENV)/.test
	@$(PY) tools/sanitize.py $(TESTS)

mutants: all $(VENV)/.test
	@$(PY) tools/mutants.py $(if $(ALL),--all) $(ONLY)

docs: all
	@$(PY) tools/commands_doc.py
	@$(PY) tools/models_doc.py

clean:
	rm -rf $(VENV) tests/clients/.venv tests/clients/node/node_modules tests/clients/node/.installed bench/.venv bench/work build *.egg-info .pytest_cache .ruff_cache .hypothesis
	rm -f llamacy/kernels/*/*.so llamacy/kernels/*/*/*.so
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

.PHONY: all test test-page test-clients test-neon test-avx512 test-peers bench report demo lint fuzz asan mutants docs clean
.DELETE_ON_ERROR:
