# cradle: build, test, install. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

OUT    := $(CURDIR)/out
PREFIX ?= /usr/local
# Which kernel `make guest` takes: small (ours, built once in minutes) or debian (downloaded in seconds).
GUEST  ?= small
IMAGES := busybox debian redis nginx

VERSION    := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT     := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
BUILD_TIME := $(shell git log -1 --format=%cI 2>/dev/null)
V          := github.com/docker/cli/cli/version
LDFLAGS    := -s -w -X $(V).Version=$(VERSION) -X $(V).GitCommit=$(COMMIT) -X $(V).BuildTime=$(BUILD_TIME)

# The command line begins before Go's runtime does, where somebody has written down how (cmd/cradle/front).
ifeq ($(shell go env GOOS GOARCH | xargs),linux amd64)
ENTRY := -E github.com/cradlevm/cradle/cmd/cradle/front.entry
endif

# What a machine needs besides Go. `deps` installs what is missing, and asks nothing of apt when nothing is. The
# scripts that make kernels and images look after their own needs.
RUN_PACKAGES  := qemu-system-x86 e2fsprogs
# The compiler of the programs on TAPs: its version is part of what they are. Installing it takes seconds.
BPF_PACKAGES := clang-14 llvm-14
TEST_PACKAGES := $(RUN_PACKAGES) erofs-utils skopeo busybox-static cpio xz-utils gcc libc6-dev docker-compose $(BPF_PACKAGES)

# What cradle is held against by `make parity` and `make bench`. Installing them starts a system's dockerd where systemd runs.
PEER_PACKAGES := docker.io containerd runc iptables iproute2 wrk

# Packages whose tests start virtual machines: not under the race detector, and one after the other.
VM_TESTS    := ./guest ./vm/... ./test/e2e ./test/pod ./test/hardimage ./test/rootless ./test/crash ./test/bench
TEST_ENV    := CRADLE_GUEST=$(OUT)/guest CRADLE_TEST_KERNEL=$(OUT)/guest/bzImage \
               CRADLE_TEST_BIN=$(CURDIR)/bin CRADLE_TEST_IMAGES=$(OUT)/images \
               CRADLE_GUEST_DEBIAN=$(OUT)/guest-debian:$(OUT)/guest-debian-release
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: help bpf build guest debian-guests kernel images deps test-deps demo test unit-test vm-test parity bench lint man install clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

build: ## programs, in bin/
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS) $(ENTRY)' -o bin/cradle ./cmd/cradle
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/cradle-init ./cmd/cradle-init
	@if [ -d cmd/containerd-shim-cradle-v1 ]; then \
	  CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/containerd-shim-cradle-v1 ./cmd/containerd-shim-cradle-v1; fi

kernel: ## our own guest kernel, in out/kernel (cached by content)
	hack/kernel.sh $(OUT)/kernel

guest: build ## kernel and initrd, in out/guest (GUEST=debian: no kernel build)
ifeq ($(GUEST),debian)
	hack/debian-kernel.sh $(OUT)/debian-kernel
	go run ./hack/mkguest -kernel $(OUT)/debian-kernel/bzImage -modules $(OUT)/debian-kernel/modules -init bin/cradle-init -o $(OUT)/guest
else
	$(MAKE) --no-print-directory kernel
	go run ./hack/mkguest -kernel $(OUT)/kernel/bzImage -init bin/cradle-init -o $(OUT)/guest
endif

# Debian's newest kernel and the one it released with, which on Debian 12 (6.1) takes layers in their plain form only.
debian-guests: build
	for kind in '' -release; do \
	  hack/debian-kernel.sh $${kind:+-$$kind} $(OUT)/debian-kernel$$kind; \
	  go run ./hack/mkguest -kernel $(OUT)/debian-kernel$$kind/bzImage -modules $(OUT)/debian-kernel$$kind/modules \
	    -init bin/cradle-init -o $(OUT)/guest-debian$$kind; \
	done

images: test-deps ## images for tests and benchmarks, in out/images
	hack/images.sh $(OUT)/images $(IMAGES)

bpf: ## the programs on TAP devices, in network/bpf/tap.o (the same bytes wherever it runs)
	$(call install_packages,$(BPF_PACKAGES))
	network/bpf/src/build.sh

define install_packages
	@missing=$$(for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  echo "installing" $$missing; \
	  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing >/dev/null; fi
endef

deps: ## packages needed to run containers
	$(call install_packages,$(RUN_PACKAGES))

test-deps: ## packages needed by the tests
	$(call install_packages,$(TEST_PACKAGES))

demo: deps ## run a container in a virtual machine of its own
	@if [ -e out/guest/manifest ]; then $(MAKE) --no-print-directory build; \
	else $(MAKE) --no-print-directory guest GUEST=debian; fi
	hack/demo.sh

test: unit-test vm-test ## all tests, real virtual machines included

unit-test: test-deps
	if [ "$$(go env CGO_ENABLED)" = 1 ] && command -v gcc >/dev/null; then race=-race; else race=; fi; \
	go test $$race -timeout 15m $$(go list ./... | grep -v -e '/cradle/guest$$' -e /cradle/vm -e /cradle/test/)

vm-test: test-deps guest debian-guests images
	$(TEST_ENV) go test -p 1 -timeout 30m $(VM_TESTS)

parity: test-deps guest images ## the same commands against cradle and Debian's dockerd (minutes)
	$(call install_packages,$(PEER_PACKAGES))
	$(TEST_ENV) go test -count=1 -timeout 60m ./test/parity

bench: build guest images ## benchmarks, as ratios to docker, containerd and others (BENCH="-only run,exec": flags)
	$(TEST_ENV) PEER_PACKAGES="$(PEER_PACKAGES)" hack/bench.sh $(BENCH)

lint: ## formatting, vet, staticcheck, shell scripts
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
	if [ -n "$$unformatted" ]; then echo "gofmt -w:" $$unformatted; exit 1; fi
	go vet ./...
	go run $(STATICCHECK) ./...
	@if command -v shellcheck >/dev/null; then git ls-files --cached --others --exclude-standard '*.sh' .ci/run | xargs shellcheck; fi

man: build ## manual pages, in out/man
	rm -rf $(OUT)/man
	bin/cradle man $(OUT)/man

install: build guest man ## programs, guest, units, manual and completions (PREFIX, DESTDIR)
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin bin/cradle
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 $(OUT)/man/*
	install -d $(DESTDIR)$(PREFIX)/share/{bash-completion/completions,zsh/site-functions,fish/vendor_completions.d}
	bin/cradle completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/cradle
	bin/cradle completion zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_cradle
	bin/cradle completion fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/cradle.fish
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/cradle out/guest/*
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system systemd/system/*
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/systemd/user systemd/user/*
	sed -i 's|/usr/local/bin/|$(PREFIX)/bin/|' $(DESTDIR)$(PREFIX)/lib/systemd/*/cradle.service

clean: ## all that was built, the kernel and images too
	rm -rf bin out
