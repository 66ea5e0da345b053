# SPDX-License-Identifier: Apache-2.0
# Sockmesh: one Makefile, no configure. `make help` lists the targets, V=1 shows the commands.

.DELETE_ON_ERROR:
.SECONDARY:
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := all

CC      ?= gcc
ifeq ($(origin CC),default)
CC      := gcc
endif
CLANG   ?= clang
BPFTOOL ?= $(firstword $(wildcard /usr/sbin/bpftool /usr/bin/bpftool) bpftool)
PREFIX  ?= /usr/local
DESTDIR ?=

# A sanitizer build lives beside the ordinary one: make SANITIZE=1
SANITIZE ?=
B := build$(if $(SANITIZE),/sanitize)$(if $(filter clang%,$(notdir $(CC))),/clang)
# Skeletons do not depend on the compiler or on sanitizers; every build shares them.
G := build/gen

VERSION := $(shell cat VERSION)

Q   := $(if $(filter 1,$(V)),,@)
say  = $(if $(filter 1,$(V)),,@printf '  %-8s %s\n' $(1) '$(2)')

, := ,
WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wformat=2 -Werror
INCLUDES := -Icommon -Ibpf -Inode-agent -Inode-agent/registration -Inode-agent/redirect \
	-Inode-agent/accelerate -Inode-agent/kube -Inode-agent/ambient -Inode-agent/observe -Inode-agent/install -Inode-agent/ctl -Icni-plugin -Itest/lib -I$(G)
CPPFLAGS := -D_GNU_SOURCE -DSOCKMESH_VERSION='"$(VERSION)"' $(INCLUDES) $(EXTRA_CPPFLAGS)
CFLAGS ?= -O2 -g
ALL_CFLAGS := -std=gnu11 $(WARN) -fno-strict-aliasing -fstack-protector-strong $(CFLAGS) \
	$(if $(SANITIZE),-fsanitize=address$(,)undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -Wno-stringop-overread -Wno-format-truncation)
ALL_LDFLAGS := -Wl,-z,relro,-z,now $(LDFLAGS) $(if $(SANITIZE),-fsanitize=address$(,)undefined)

# ---- sources -----------------------------------------------------------------------------------

COMMON_SRC := $(wildcard common/*.c)
PLUGIN_SRC := $(wildcard cni-plugin/*.c)
CTL_SRC    := $(wildcard node-agent/ctl/*.c)
AGENT_SRC  := $(wildcard node-agent/*.c) \
	$(foreach d,registration redirect accelerate kube ambient install observe,$(wildcard node-agent/$(d)/*.c)) \
	$(G)/zds.pb-c.c
UNIT_SRC   := $(wildcard test/unit/*_test.c)
FUZZ_SRC   := $(wildcard test/fuzz/*_fuzz.c)
PROG_SRC   := $(wildcard $(addprefix test/,$(addsuffix /*.c,contract runtime proxies programs bench demo plugin agent accelerate enrolment)))

# Every object file of the product but the mains: what unit tests and fuzzers link against.
MAINS   := cni-plugin/main.c node-agent/main.c node-agent/ctl/main.c
LIB_SRC := $(filter-out $(MAINS),$(COMMON_SRC) $(PLUGIN_SRC) $(CTL_SRC) $(AGENT_SRC))
obj      = $(patsubst %.c,$(B)/obj/%.o,$(1))

BIN := $(B)/bin/sockmesh-cni $(B)/bin/sockmesh-agent $(B)/bin/sockmeshctl
UNIT_BIN := $(patsubst test/unit/%.c,$(B)/test/unit/%,$(UNIT_SRC))
PROG_BIN := $(patsubst test/%.c,$(B)/test/%,$(PROG_SRC))
FUZZ_BIN := $(patsubst test/fuzz/%.c,build/fuzz/%,$(FUZZ_SRC))
FUZZ_OBJ := $(patsubst %.c,build/fuzz/obj/%.o,$(LIB_SRC))
FUZZ_FLAGS := -std=gnu11 -g -O1 -fsanitize=address$(,)undefined -fno-sanitize-recover=all

# Each skeleton is one BPF object made of one or more files of bpf/.
DATAPATH_BPF := outbound original_dst dns
SKELS := $(G)/datapath.skel.h $(G)/inbound.skel.h $(G)/kubelet.skel.h $(G)/listener_scan.skel.h \
	$(G)/listener_lookup.skel.h $(G)/accelerate.skel.h $(G)/accelerate_probe.skel.h \
	$(G)/advise.skel.h $(G)/process_watch.skel.h
GENERATED := $(SKELS) $(G)/zds.pb-c.h

# ---- programs ----------------------------------------------------------------------------------

.PHONY: all
all: $(BIN) ## the three programs (default)

AGENT_LIBS := -lbpf -lelf -lz -ljansson -lcurl -lyaml -lcap-ng -lnftnl -lmnl -lprotobuf-c -lmicrohttpd
CTL_LIBS   := -ljansson
# The plugin runs on the host's file system, whatever distribution that is: fully static.
# Sections that nothing reaches are dropped, which is what keeps it under 1 MB.
PLUGIN_LINK := $(if $(SANITIZE),,-static -Wl$(,)--gc-sections -s)

$(B)/bin/sockmesh-cni: $(call obj,$(COMMON_SRC) $(PLUGIN_SRC))
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) $(PLUGIN_LINK) -o $@ $^ -ljansson

$(B)/bin/sockmesh-agent: $(call obj,$(COMMON_SRC) $(AGENT_SRC))
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(AGENT_LIBS) -lpthread

$(B)/bin/sockmeshctl: $(call obj,$(COMMON_SRC) $(CTL_SRC))
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(CTL_LIBS)

$(B)/obj/%.o: %.c | $(GENERATED)
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -ffunction-sections -fdata-sections -MMD -MP -c -o $@ $<

# ---- BPF ---------------------------------------------------------------------------------------

BPF_CFLAGS := --target=bpf -mcpu=v3 -g -O2 -Wall -Wextra -Werror -Wno-missing-declarations \
	-idirafter /usr/include/$(shell $(CC) -print-multiarch 2>/dev/null || echo x86_64-linux-gnu) -Ibpf

$(G)/%.bpf.o: bpf/%.bpf.c
	$(call say,BPF,$@)
	@mkdir -p $(@D)
	$(Q)$(CLANG) $(BPF_CFLAGS) -MMD -MP -MF $(G)/$*.bpf.d -c -o $@ $<

$(G)/datapath.linked.o: $(DATAPATH_BPF:%=$(G)/%.bpf.o)
	$(call say,BPFLINK,$@)
	$(Q)$(BPFTOOL) gen object $@ $^

$(G)/%.linked.o: $(G)/%.bpf.o
	$(call say,BPFLINK,$@)
	$(Q)$(BPFTOOL) gen object $@ $<

$(G)/%.skel.h: $(G)/%.linked.o
	$(call say,SKEL,$@)
	$(Q)$(BPFTOOL) gen skeleton $< name $*_bpf > $@

# ---- messages ----------------------------------------------------------------------------------

# One run writes both files.
$(G)/zds.pb-c.h $(G)/zds.pb-c.c &: node-agent/ambient/zds.proto
	$(call say,PROTOC,$(G)/zds.pb-c.c)
	@mkdir -p $(@D)
	$(Q)protoc-c --proto_path=$(<D) --c_out=$(G) $(<F)

# ---- tests -------------------------------------------------------------------------------------

$(UNIT_BIN): $(B)/test/unit/%: $(B)/obj/test/unit/%.o $(call obj,$(LIB_SRC) test/lib/test_main.c)
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(AGENT_LIBS) -lpthread

# Test clients and servers are static, so that they also run inside an initramfs.
$(PROG_BIN): $(B)/test/%: test/%.c $(wildcard test/lib/*.h test/contract/*.h)
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) -std=gnu11 $(WARN) -O2 -g -static -o $@ $< -lpthread

# From an archive, so that a fuzzer has only what it calls: the rest would slow each run of it.
build/fuzz/obj/%.o: %.c | $(GENERATED)
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(CLANG) $(CPPFLAGS) $(FUZZ_FLAGS) -fsanitize=fuzzer-no-link -ffunction-sections \
		-MMD -MP -c -o $@ $<

build/fuzz/lib.a: $(FUZZ_OBJ)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^

$(FUZZ_BIN): build/fuzz/%: build/fuzz/obj/test/fuzz/%.o build/fuzz/lib.a
	$(call say,FUZZ,$@)
	$(Q)$(CLANG) $(FUZZ_FLAGS) -fsanitize=fuzzer -Wl$(,)--gc-sections -o $@ $^ $(AGENT_LIBS) -lpthread

# The agent, but for the guards that SOCKMESH_WITHOUT_GUARD names: what the tests of hazards break.
UNGUARDED_AGENT := $(B)/test/sockmesh-agent-without-guards
$(UNGUARDED_AGENT): $(call obj,$(COMMON_SRC) \
		$(filter-out node-agent/accelerate/accelerate_guards.c,$(AGENT_SRC)) test/lib/accelerate_guards_test.c)
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(AGENT_LIBS) -lpthread

# The agent's client of the Kubernetes API alone: it needs what the agent links against.
KUBE_RIG := $(B)/test/kube/watch_rig
$(KUBE_RIG): $(B)/obj/test/kube/watch_rig.o $(call obj,$(LIB_SRC))
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(AGENT_LIBS) -lpthread

# The agent's server for ztunnel alone.
ZDS_RIG := $(B)/test/zds/zds_rig
$(ZDS_RIG): $(call obj,$(LIB_SRC) test/zds/zds_rig.c)
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(AGENT_LIBS) -lpthread

.PHONY: test-programs unit-tests
unit-tests: $(UNIT_BIN)
test-programs: $(PROG_BIN) $(UNGUARDED_AGENT) $(KUBE_RIG) $(ZDS_RIG)

# SCALE=full runs the long tests at their full counts.
SCALE ?= ci
.PHONY: test soak test-kernels test-cluster fuzz demo bench
test: deps-if-missing ## every test that this machine can run (as root)
	$(Q)$(MAKE) --no-print-directory all unit-tests test-programs
	$(Q)BUILD_DIR=$(B) SCALE=$(SCALE) test/run.sh $(SUITES)

soak: ## the tests with the full counts of the long ones
	$(Q)$(MAKE) --no-print-directory test SCALE=full
	$(Q)BUILD_DIR=$(B) SCALE=full test/enrolment/load.sh

# All kernels and the running one, unless SCALE=ci is asked for: then 5.10 and 6.12.
test-kernels: deps-if-missing ## the contract on Debian's kernels in QEMU, and on the running one (as root)
	$(Q)$(MAKE) --no-print-directory all test-programs
	$(Q)BUILD_DIR=$(B) SCALE=$(if $(filter file,$(origin SCALE)),full,$(SCALE)) test/kernels/run.sh

# SCALE=full has 5,000 namespaces and pods; KUBERNETES=oldest runs an old release of the API server.
test-cluster: deps-if-missing ## with a real kube-apiserver and etcd; the first time builds it (as root)
	$(Q)$(MAKE) --no-print-directory all test-programs
	$(Q)BUILD_DIR=$(B) SCALE=$(SCALE) KUBERNETES=$(KUBERNETES) test/cluster/run.sh

FUZZ_SECONDS ?= 60
fuzz: $(FUZZ_BIN) ## each fuzzer for FUZZ_SECONDS (60)
	$(Q)FUZZ_SECONDS=$(FUZZ_SECONDS) test/fuzz/run.sh $(FUZZ_BIN)

demo: deps-if-missing ## two pods with real proxies, on this machine, removed again at the end (as root)
	$(Q)$(MAKE) --no-print-directory all test-programs
	$(Q)BUILD_DIR=$(B) test/demo/demo.sh

bench: deps-if-missing ## the figures that docs and issues quote (as root); BENCH=quick: four minutes
	$(Q)$(MAKE) --no-print-directory all test-programs
	$(Q)BUILD_DIR=$(B) test/bench/run.sh

BENCH_BASELINE ?= $(B)/bench/baseline.json
.PHONY: bench-compare
bench-compare: ## the last benchmark with BENCH_BASELINE, an earlier report.json; fails on regressions
	$(Q)python3 -EsB test/bench/compare.py --baseline $(BENCH_BASELINE) --report $(B)/bench/report.json

# ---- dependencies ------------------------------------------------------------------------------

BUILD_DEPS := build-essential pkg-config clang llvm bpftool libbpf-dev libelf-dev zlib1g-dev \
	libjansson-dev libcurl4-openssl-dev libyaml-dev libcap-ng-dev libmnl-dev libnftnl-dev \
	protobuf-c-compiler libprotobuf-c-dev libmicrohttpd-dev
TEST_DEPS := bats iproute2 nftables iptables haproxy containerd runc containernetworking-plugins \
	python3-minimal python3-venv jq procps curl util-linux psmisc liburing-dev \
	qemu-system-x86 cpio kmod xz-utils debian-archive-keyring nginx openssl gnuplot-nox etcd-server etcd-client ipset
LINT_DEPS := clang-format clang-tidy clang-tools shellcheck codespell libclang-rt-14-dev man-db

.PHONY: deps deps-if-missing
deps: ## install the Debian packages that building and testing need (as root)
	$(call say,DEPS,$(words $(BUILD_DEPS) $(TEST_DEPS) $(LINT_DEPS)) Debian packages)
	$(Q)apt-get update -qq
	$(Q)DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		$(BUILD_DEPS) $(TEST_DEPS) $(LINT_DEPS) >/dev/null

deps-if-missing:
	$(Q)dpkg-query -W -f '$${Status}\n' $(BUILD_DEPS) $(TEST_DEPS) $(LINT_DEPS) 2>/dev/null | \
		awk '$$3 == "installed" { n++ } END { exit n != $(words $(BUILD_DEPS) $(TEST_DEPS) $(LINT_DEPS)) }' \
		|| $(MAKE) --no-print-directory deps

# ---- quality -----------------------------------------------------------------------------------

C_FILES := $(shell git ls-files '*.c' '*.h' 2>/dev/null)
TIDY_FILES := $(filter-out bpf/% test/%,$(filter %.c,$(C_FILES)))
SH_FILES := $(shell git ls-files '*.sh' '.ci/run' 2>/dev/null)

.PHONY: lint format compile_commands.json
lint: $(GENERATED) ## formatting, static analysis, shell scripts, spelling
	$(call say,FORMAT,--dry-run)
	$(Q)clang-format --dry-run -Werror $(C_FILES)
	$(call say,TIDY,$(words $(TIDY_FILES)) files)
	$(Q)TIDY_FLAGS="$$(printf '%s ' $(CPPFLAGS) -std=gnu11)"; export TIDY_FLAGS; \
		printf '%s\n' $(TIDY_FILES) | \
		xargs -P 2 -n 6 sh -c 'clang-tidy --quiet "$$@" -- $$TIDY_FLAGS 2>/dev/null' tidy
	$(call say,SHELL,$(words $(SH_FILES)) files)
	$(Q)shellcheck -x $(SH_FILES)
	$(call say,SPELL,)
	$(Q)git ls-files | grep -vE '^(test/fuzz/corpus/|test/cluster/apiserver/.*sum$$|LICENSE)' | xargs codespell --ignore-words-list=bu,crate,iif,ect,uint,fo,te,nd,ans,ue

format: ## format every C file
	$(Q)clang-format -i $(C_FILES)

compile_commands.json: ## for editors and clang tools
	$(call say,GEN,$@)
	$(Q)flags=$$(printf '%s\n' $(CPPFLAGS) -std=gnu11 | jq -R . | jq -sc .); \
		printf '%s\n' $(filter %.c,$(filter-out bpf/%,$(C_FILES))) | \
		jq -R --arg dir "$(CURDIR)" --argjson flags "$$flags" \
		'{directory: $$dir, file: ., arguments: (["$(CC)"] + $$flags + ["-c", .])}' | jq -s . > $@

# ---- install -----------------------------------------------------------------------------------

MAN := $(wildcard docs/*.8)
.PHONY: install uninstall clean help
install: all ## into DESTDIR, PREFIX (/usr/local); the plugin into /opt/cni/bin
	install -D -m 0755 $(B)/bin/sockmesh-agent $(DESTDIR)$(PREFIX)/sbin/sockmesh-agent
	install -D -m 0755 $(B)/bin/sockmeshctl $(DESTDIR)$(PREFIX)/sbin/sockmeshctl
	install -D -m 0755 $(B)/bin/sockmesh-cni $(DESTDIR)/opt/cni/bin/sockmesh-cni
	for page in $(MAN); do install -D -m 0644 $$page $(DESTDIR)$(PREFIX)/share/man/man8/$$(basename $$page); done

uninstall: ## what install put there; run `sockmesh-agent --uninstall` first
	rm -f $(DESTDIR)$(PREFIX)/sbin/sockmesh-agent $(DESTDIR)$(PREFIX)/sbin/sockmeshctl $(DESTDIR)/opt/cni/bin/sockmesh-cni
	for page in $(MAN); do rm -f $(DESTDIR)$(PREFIX)/share/man/man8/$$(basename $$page); done

clean: ## remove build/ but keep build/cache
	$(Q)find build -mindepth 1 -maxdepth 1 ! -name cache -exec rm -rf {} + 2>/dev/null || true

help: ## this list
	@awk -F ':.*## ' '/^[a-z._-]+:.*## / { printf "  %-22s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

-include $(patsubst %.o,%.d,$(call obj,$(LIB_SRC) $(MAINS) $(UNIT_SRC) test/lib/test_main.c test/lib/accelerate_guards_test.c test/kube/watch_rig.c test/zds/zds_rig.c))
-include $(FUZZ_OBJ:.o=.d) $(patsubst %.c,build/fuzz/obj/%.d,$(FUZZ_SRC))
-include $(wildcard $(G)/*.bpf.d)
