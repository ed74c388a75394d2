# make demo    the birth of two machines, to watch (KEEP=1 leaves the server running)
# make demo-cloud-init  unmodified cloud-init over the network interface, as root
# make test    go vet and all tests, with one table at the end
# make bench   the benchmarks, each beside its peer
# make build   bin/imprint, bin/imprint-agent and bin/imprint-helper
# make lint    gofmt, go vet and, where it is installed, golangci-lint
# make docs    generate the references in docs/ from the code
# make recording  draw the README's picture from a real birth
# make setup   install what the tests need (Debian, through apt-get)

GO ?= go
# Where kmod and mke2fs are, which not every user's path has.
export PATH := $(PATH):/usr/sbin:/sbin

# Static, so that they run in any guest and on any host of their architecture.
build: export CGO_ENABLED = 0
build:
	$(GO) build -trimpath -o bin/imprint ./cmd/imprint
	$(GO) build -trimpath -ldflags='-s -w' -o bin/imprint-agent ./cmd/imprint-agent
	$(GO) build -trimpath -ldflags='-s -w' -o bin/imprint-helper ./cmd/imprint-helper

demo: build
	@test/setup demo
	@$(GO) build -o bin/mkguest ./demo/mkguest
	@demo/run

demo-cloud-init: build
	@test "$$(id -u)" = 0 || { echo "demo: network interfaces need root; run it with sudo" >&2; exit 1; }
	@test/setup demo-cloud-init
	@$(GO) build -o bin/mkguest ./demo/mkguest
	@demo/cloud-init

test: setup
	$(GO) vet ./...
	$(GO) vet -tags vm,interop,bench ./test/... ./internal/helpervm/
	$(GO) run ./test/report

# SCALE=1000000 reserves a million instances.
bench:
	@test/setup bench
	$(GO) test -tags bench -run '^$$' -bench Enrolments -benchtime 1x -timeout 60m ./test/bench/
	$(GO) test -tags bench -run '^$$' -bench Serial -benchtime 200x -timeout 60m ./test/bench/
	$(GO) test -tags bench -run 'TestMetadata|TestBootStorm|TestFirstByte|TestMedia|TestImage|TestPersonalize|TestHelperVM' -v -timeout 60m ./test/bench/
	$(GO) test -tags bench -run TestScale -v -timeout 60m ./internal/store/ -store.scale $(or $(SCALE),100000)

lint:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "gofmt: $$unformatted"; exit 1; }
	$(GO) vet ./...
	@if command -v golangci-lint >/dev/null; then golangci-lint run ./...; else echo "lint: golangci-lint is not installed; only gofmt and go vet ran"; fi

# The README's picture, from a real run.
recording: build
	@$(GO) build -o bin/mkguest ./demo/mkguest
	@CLICOLOR_FORCE=1 demo/run | sed -n '/Reserve web-1/,/What was seen of web-1/p' | sed '$$d' | \
		$(GO) run ./demo/terminalsvg > docs/first-birth.svg

docs:
	$(GO) generate ./...

setup:
	@test/setup test

clean:
	rm -rf bin

.PHONY: build demo demo-cloud-init test bench lint docs recording setup clean
