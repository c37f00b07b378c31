# Thin: each target is one command that also works by hand.
BUILD  = build/release
BIN    = $(BUILD)/tranche
PYTHON = /usr/bin/python3

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

run: ## install what is missing, build, run examples/jobs.jsonl on the example model
	@tools/install.sh run
	@tools/build.sh release tranche
	@$(BIN) run --model examples/tiny-model --db examples/jobs.db --show 12 \
		--log-level warn examples/jobs.jsonl

demo: ## Kafka and Redis to PostgreSQL on private servers: 4,000 prompts, two workers (a minute or two)
	@tools/install.sh demo
	@tools/build.sh release tranche
	@tools/demo.py

test: ## install what the tests need and run all of them (about 45 minutes on 2 cores)
	@tools/install.sh test
	@tests/drive.py all

test-keda: ## KEDA's own scalers and loop on our queues and manifests (its first build takes minutes)
	@tools/install.sh test
	@tools/build.sh release tranche
	@tools/keda.sh >/dev/null && tools/k8s_schemas.sh >/dev/null
	@rm -rf build/keda/records
	@PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m pytest -q -s -p no:cacheprovider tests/keda
	@tests/keda/proof.py

check: ## build, lint and the short unit tests (under a minute when warm)
	@tests/drive.py check

bench: ## measure ceilings and our share of them on this machine
	@tools/install.sh bench
	@tools/fixtures.sh
	@tools/build.sh release
	@for bench in $(BUILD)/*_bench; do case $$bench in *sink_postgres*) ;; *) $$bench || exit 1 ;; esac; done
	@$(PYTHON) tools/random_model.py build/bench-model --shape qwen2.5-0.5b
	@$(BIN) bench --model build/bench-model $(BENCH)
	@# Beside Transformers where make golden has fetched it.
	@[ ! -e .cache/golden/complete ] || .cache/golden/bin/python tools/bench_transformers.py build/bench-model
	@$(PYTHON) -m pytest -q -s -p no:cacheprovider tests/run/test_sim_speed.py
	@tests/run/postgres_server.py $(BUILD)/sink_postgres_bench
	@tests/bench/queue_bench.py --million

campaign: ## the whole fault campaign, in pieces if need be; its report is docs/campaign.md
	@tools/build.sh faults tranche faultproxy
	@$(PYTHON) tests/faults/campaign.py run $(CAMPAIGN); $(PYTHON) tests/faults/campaign.py report

scaling: ## docs/scaling.md: scaling on lag, on GPU use and not at all, simulated (half a minute)
	@$(PYTHON) tools/scaling page

golden: ## remake the golden files (fetches Transformers)
	@tools/golden.sh

format: ## format the C sources in place
	@tests/lint/format.sh --list | xargs clang-format-14 -i

lint: ## format, layering, option names, sizes, private paths
	@tests/drive.py lint

fuzz: ## fuzz each parser for SECONDS (60)
	@tests/drive.py fuzz $(or $(SECONDS),60)

cuda: ## build/cuda/tranche with the CUDA engine; finds or fetches a toolkit
	@tools/install.sh cuda
	@root=$$(tools/cuda_toolkit.sh) && cmake -S . -B build/cuda -G Ninja -DCMAKE_BUILD_TYPE=Release \
		-DTRANCHE_CUDA=$$root >/dev/null && cmake --build build/cuda --target tranche

cuda-all: ## build/cuda-all/tranche with code for sm_80, sm_86, sm_89 and sm_90a; no register spills
	@tools/install.sh cuda
	@root=$$(tools/cuda_toolkit.sh) && cmake -S . -B build/cuda-all -G Ninja -DCMAKE_BUILD_TYPE=Release \
		-DTRANCHE_CUDA=$$root "-DTRANCHE_CUDA_ARCHS=80;86;89;90a" >/dev/null && \
		cmake --build build/cuda-all --target tranche
	@tests/cuda/spills.sh build/cuda-all/cuda/*.log

test-image: ## the Dockerfile's steps in a clean root, as root; IMAGES="cpu cuda" (docs/image.md)
	@tools/install.sh image
	@IMAGES="$(IMAGES)" $(PYTHON) -m pytest -q -s -p no:cacheprovider tests/image/test_image.py

clean: ## remove everything that was built
	rm -rf build

.PHONY: cuda cuda-all help run demo test test-keda test-image check bench campaign scaling golden format lint fuzz clean
