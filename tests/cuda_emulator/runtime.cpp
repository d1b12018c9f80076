/* The machine of the CUDA emulator: threads as fibers, blocks one after the other, barriers, the
   copy engine and the tensor cores. Kernels reach it through emulator.h; Python calls es_launch.

   Every thread of a block (or of a cluster) is a fiber with a stack of its own. A fiber runs until
   it has to wait; then the next one of its warp runs, and when a warp can't go on, the next warp.
   One system thread runs all, so a kernel's races show as wrong order, not as chance: run it in
   both orders. Copies that run on their own on a GPU happen as late as they may, and what they will
   overwrite is poisoned at once, so that a wait left out is found.

   All memory that isn't the kernel's to touch faults: shared memory and operands lie between pages
   without access. Faults, misalignment (checked by the compiler's traps) and endless loops end the
   launch with a message. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <pthread.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

/* -- what emulator.h sees ---------------------------------------------------------------------- */
struct Dim { unsigned x, y, z; };
struct Thread { Dim thread, block; };

/* As the prelude's TensorMap: 128 bytes, filled by Python (see __init__.py). */
struct alignas(64) TensorMap {
  char *base;
  int64_t strides[4];      /* bytes, of axes 1 to 4 */
  int32_t sizes[5], box[5], steps[5];
  int32_t rank, item, swizzle;
};
static_assert(sizeof(TensorMap) == 128, "TensorMap");

/* -- state ------------------------------------------------------------------------------------- */
enum { READY, BLOCKED, POLLING, DONE };
enum { STACK = 1 << 16, MAX_FIBERS = 8192, MAX_COPIES = 512, MAX_TMA = 256 };
enum { PAGE = 4096, GUARD = 1 << 20 }; /* bytes of a page; between two operands */
enum { REGION = 1 << 18, MAX_CLUSTER = 16 }; /* address space of a block's shared memory */

struct Copy { char *to; const char *from; int bytes, group; };
struct Transfer { TensorMap map; char *shared; uint64_t *barrier; int at[5]; bool store; };
struct Block;
struct Fiber : Thread {
  void *stack_pointer;
  Block *home;
  int state, index, result, cluster_phase;
  const char *waits;                         /* for what, in a message */
  bool (*poll)(Fiber *);
  uint64_t *barrier; int parity;             /* of a wait for a barrier in shared memory */
  void *part;                                /* of a collective operation */
  int copies, group;                         /* asynchronous copies under way */
  Copy copy[MAX_COPIES];
  int stores, store_group;                   /* stores of the copy engine under way */
  struct { Transfer transfer; int group; } store[8];
};
struct Collective {
  void (*operation)(void **, int);
  const char *name;
  int arrived;
  void *parts[128];
};
struct Named { int arrived, expected, sum, ands; };
struct Block {
  Dim index; int rank, live;
  char *shared;
  Named named[16];
  Collective warps[32], groups[8];
  int transfers;
  Transfer transfer[MAX_TMA];
};
struct Launch {
  unsigned grid[3], cluster[3], threads, shared, reversed;
  void (*call)(void **);
  void **arguments;
  char *statics; uint64_t static_bytes;      /* the `__shared__` variables of the kernel's file */
};

EXPORT Thread *es_self; Thread *es_self;
EXPORT Dim es_block_dim, es_grid_dim; Dim es_block_dim, es_grid_dim;
static Fiber *fibers; static Block *blocks; static int fiber_count, block_count;
static char *stacks, *arena; static unsigned arena_bytes[MAX_CLUSTER];
static void *scheduler;
static const Launch *launch;
static int cluster_arrived, cluster_phase, cluster_live;
static sigjmp_buf escape; static char message[1024]; static pthread_t runner;

static const char SYNC[] = "sync_threads", WAIT[] = "barrier_wait";

static inline Fiber *self() { return static_cast<Fiber *>(es_self); }

EXPORT __attribute__((noreturn)) void es_fail(const char *format, ...) {
  va_list arguments; va_start(arguments, format);
  const int n = vsnprintf(message, sizeof message - 100, format, arguments);
  if (es_self) snprintf(message + (n < 900 ? n : 900), 100, " (block %u,%u,%u thread %u,%u,%u)",
    es_self->block.x, es_self->block.y, es_self->block.z,
    es_self->thread.x, es_self->thread.y, es_self->thread.z);
  siglongjmp(escape, 1);
}

/* -- fibers ------------------------------------------------------------------------------------ */
extern "C" void es_switch(void **save, void *to);
#if defined(__x86_64__)
asm(".text\n.type es_switch,@function\nes_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
enum { SAVED = 8, RETURN = 6 }; /* words of a new stack; which of them is the first address */
#elif defined(__aarch64__)
asm(".text\n.type es_switch,%function\nes_switch:\n"
    "sub sp, sp, #160\nstp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\n"
    "stp x25, x26, [sp, #48]\nstp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\n"
    "stp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\n"
    "ldp x25, x26, [sp, #48]\nldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\n"
    "ldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\nret\n");
enum { SAVED = 20, RETURN = 11 };
#endif

static void leave() { es_switch(&self()->stack_pointer, scheduler); }

static void wait_for(int state, const char *what) {
  self()->waits = what;
  self()->state = state;
  leave();
}

static void poll_until(bool (*ready)(Fiber *), const char *what) {
  if (ready(self())) return;
  self()->poll = ready;
  wait_for(POLLING, what);
}

static void finish_stores(Fiber *f, int groups);
static void release(Block *b, int id);

static void start() {
  Fiber *f = self();
  launch->call(launch->arguments);
  finish_stores(f, 0); /* copies nobody waited for never arrive */
  for (int i = 0; i < 64; i++)
    if (stacks[(int64_t)f->index * STACK + i] != 0x5a) es_fail("a thread's stack overflowed");
  f->state = DONE;
  f->home->live--; cluster_live--;
  if (f->home->named[0].arrived) release(f->home, 0);
  if (cluster_arrived && cluster_arrived == cluster_live) { cluster_arrived = 0; cluster_phase++; }
  leave();
}

/* -- barriers of a block and of a cluster ------------------------------------------------------ */
/* Let the threads at a barrier go on if all have come; barrier 0 waits for all that still run. */
static void release(Block *b, int id) {
  Named &n = b->named[id];
  if (n.arrived < (n.expected ? n.expected : b->live)) return;
  const int sum = n.sum, ands = n.ands;
  n = Named{0, 0, 0, 1};
  for (int i = 0; i < fiber_count; i++) {
    Fiber &f = fibers[i];
    if (f.home == b && f.state == BLOCKED && f.parity == -1 - id) {
      f.state = READY; f.parity = 0; f.result = sum | ands << 16;
    }
  }
}

/* Wait at barrier `id` of `count` threads (0: of all). Returns how many came with a value that
   isn't 0 and, in bit 16, whether all did. */
EXPORT int es_barrier(int id, int count, int value) {
  Fiber *f = self();
  if (id < 0 || id > 15) es_fail("no barrier has the number %d", id);
  if (count % 32) es_fail("barrier %d: %d threads are no whole warps", id, count);
  Named &n = f->home->named[id];
  if (n.arrived && n.expected != count)
    es_fail("barrier %d is used for %d and for %d threads at once", id, n.expected, count);
  n.expected = count; n.sum += value != 0; n.ands &= value != 0; n.arrived++;
  f->parity = -1 - id; f->state = BLOCKED;
  release(f->home, id);
  if (f->state == BLOCKED) wait_for(BLOCKED, id || count ? SYNC : "__syncthreads");
  return f->result;
}

EXPORT void es_cluster_arrive() {
  self()->cluster_phase = cluster_phase;
  if (++cluster_arrived == cluster_live) { cluster_arrived = 0; cluster_phase++; }
}
EXPORT void es_cluster_wait() {
  poll_until([](Fiber *f) { return f->cluster_phase != cluster_phase; }, "cluster_wait");
}
EXPORT int es_cluster_rank() { return self()->home->rank; }

/* -- operations of a warp (32 threads) or a warp group (128) ----------------------------------- */
/* operation(parts, width) runs once all threads of the group have come with the same operation;
   parts[i] is the argument of the group's thread i. */
EXPORT void es_collective(
    int width, const char *name, void (*operation)(void **, int), void *part) {
  Fiber *f = self();
  const int thread = f->index - f->home->rank * launch->threads;
  Collective &c = width == 32 ? f->home->warps[thread / 32] : f->home->groups[thread / 128];
  if (c.arrived && (c.operation != operation || c.name != name))
    es_fail("threads of a warp diverge: some are at %s, some at %s", c.name, name);
  c.operation = operation; c.name = name;
  c.parts[thread % width] = part;
  if (++c.arrived < width) { wait_for(BLOCKED, name); return; }
  c.arrived = 0;
  if (operation) operation(c.parts, width);
  const int first = f->index - thread % width;
  for (int i = 0; i < width; i++) fibers[first + i].state = READY;
}

/* -- shared memory ----------------------------------------------------------------------------- */
EXPORT char *es_shared_memory() { return self()->home->shared; }
EXPORT uint32_t es_shared_address(const void *p) {
  const int64_t at = (const char *)p - arena;
  if (at < 0 || at >= (int64_t)MAX_CLUSTER * REGION)
    es_fail("shared_address: %p is not in dynamic shared memory", p);
  return (uint32_t)at;
}
EXPORT char *es_shared_pointer(uint32_t address) { return arena + address; }
EXPORT uint32_t es_cluster_address(const void *p, int rank) {
  if (rank < 0 || rank >= block_count) es_fail("the cluster has no block %d", rank);
  return es_shared_address(p) % REGION + rank * REGION;
}
static void require_shared(const void *p, int alignment, const char *what) {
  const char *c = (const char *)p;
  const bool dynamic = c >= arena && c < arena + (int64_t)MAX_CLUSTER * REGION;
  if (!dynamic && !(c >= launch->statics && c < launch->statics + launch->static_bytes))
    es_fail("%s: %p is not in shared memory", what, p);
  if ((uint64_t)p % alignment) es_fail("%s: %p is not aligned to %d bytes", what, p, alignment);
}

#include "copies.h"
/* -- matrices ---------------------------------------------------------------------------------- */
struct MatrixRow { const void *row; uint32_t *result; };
/* ldmatrix: lane 8m+i gives row i of the 8x8 matrix m; lane l gets the elements 2(l%4) and
   2(l%4)+1 of row l/4 of each, or (transposed) of column l/4. */
template <int COUNT, bool TRANSPOSED> static void load_matrices(void **parts, int) {
  for (int i = 0; i < COUNT * 8; i++) require_shared(((MatrixRow *)parts[i])->row, 16, "ldmatrix");
  for (int l = 0; l < 32; l++)
    for (int m = 0; m < COUNT; m++) {
      uint16_t pair[2];
      for (int j = 0; j < 2; j++) {
        const int k = l % 4 * 2 + j, row = TRANSPOSED ? k : l / 4, column = TRANSPOSED ? l / 4 : k;
        pair[j] = ((const uint16_t *)((MatrixRow *)parts[m * 8 + row])->row)[column];
      }
      memcpy(((MatrixRow *)parts[l])->result + m, pair, 4);
    }
}
EXPORT void es_ldmatrix(uint32_t *result, const void *row, int count, bool transposed) {
  MatrixRow part{row, result};
  const auto operation = count == 4
    ? (transposed ? load_matrices<4, true> : load_matrices<4, false>)
    : (transposed ? load_matrices<2, true> : load_matrices<2, false>);
  es_collective(32, "ldmatrix", operation, &part);
}

template <class To, class From> static To bits_as(From x) {
  To y; memcpy(&y, &x, sizeof y); return y;
}
static float half_value(uint16_t bits) { return (float)bits_as<_Float16>(bits); }
static float bf16_value(uint16_t bits) { return bits_as<float>((uint32_t)bits << 16); }
static float tf32_value(uint32_t bits) { return bits_as<float>(bits & 0xffffe000u); }

struct MmaPart { float *c; const uint32_t *a, *b; };
template <int KIND> static float element(uint32_t pair, int j) {
  const uint16_t bits = pair >> 16 * j;
  return KIND == 2 ? tf32_value(pair) : KIND == 1 ? bf16_value(bits) : half_value(bits);
}
/* Fragments as in the PTX manual, "Matrix Fragments for mma.m16n8k16" and ".m16n8k8". */
template <int KIND> static void multiply(void **parts, int) {
  constexpr int K = KIND == 2 ? 8 : 16;
  float a[16][K], b[K][8];
  for (int l = 0; l < 32; l++) {
    const MmaPart &p = *(MmaPart *)parts[l];
    const int g = l / 4, t = l % 4;
    for (int r = 0; r < 4; r++)
      for (int j = 0; j < (KIND == 2 ? 1 : 2); j++) {
        const int row = g + r % 2 * 8, k = KIND == 2 ? t + r / 2 * 4 : 2 * t + j + r / 2 * 8;
        a[row][k] = element<KIND>(p.a[r], j);
        if (r >= 2) continue;
        const int kb = KIND == 2 ? t + r * 4 : 2 * t + j + r * 8;
        b[kb][g] = element<KIND>(p.b[r], j);
      }
  }
  float sum[16][8] = {};
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < K; k++)
      for (int j = 0; j < 8; j++) sum[i][j] += a[i][k] * b[k][j];
  for (int l = 0; l < 32; l++)
    for (int r = 0; r < 4; r++)
      ((MmaPart *)parts[l])->c[r] += sum[l / 4 + r / 2 * 8][l % 4 * 2 + r % 2];
}
/* kind: 0 half, 1 bf16, 2 TF32. */
EXPORT void es_mma(float *c, const uint32_t *a, const uint32_t *b, int kind) {
  MmaPart part{c, a, b};
  es_collective(32, "mma", kind == 2 ? multiply<2> : kind == 1 ? multiply<1> : multiply<0>, &part);
}

#include "wgmma.h"

/* -- launches ---------------------------------------------------------------------------------- */
/* Where a fiber waits, in words. */
static void describe(const Fiber &f, char *text, int size) {
  if (f.waits == SYNC) {
    const int id = -1 - f.parity;
    snprintf(text, size, "sync_threads(%d, %d)", id, f.home->named[id].expected);
  } else if (f.waits == WAIT) {
    const Arrivals a = *(Arrivals *)f.barrier;
    snprintf(text, size, "barrier_wait of +%d, parity %d (%d arrivals, %d bytes missing)",
      (int)((char *)f.barrier - f.home->shared), f.parity, (int)a.pending, a.bytes);
  } else snprintf(text, size, "%s", f.waits);
}

static void deadlock() {
  char text[800]; int n = 0;
  Fiber *before = nullptr; char known[96] = "";
  int same = 0;
  es_self = nullptr;
  for (int i = 0; i <= fiber_count && n < 600; i++) {
    Fiber *f = i < fiber_count ? fibers + i : nullptr;
    if (f && f->state == DONE) continue;
    char place[96] = "";
    if (f) describe(*f, place, sizeof place);
    if (before && f && f->home == before->home && !strcmp(place, known)) { same++; continue; }
    if (before)
      n += snprintf(text + n, sizeof text - n, "%s%d threads (first %u) of block %u,%u,%u at %s",
        n ? "; " : "", same, before->thread.x, before->block.x, before->block.y, before->block.z,
        known);
    before = f; same = 1;
    strcpy(known, place);
  }
  es_fail("deadlock: %s", text);
}

/* Run all fibers to their end, warp by warp. */
static void run_fibers() {
  const int warps = fiber_count / 32, last = launch->reversed ? 31 : 0;
  for (;;) {
    bool moved = false, live = false;
    for (int w = 0; w < warps; w++) {
      Fiber *warp = fibers + 32 * (launch->reversed ? warps - 1 - w : w);
      for (bool ran = true; ran;) {
        ran = false;
        for (int l = 0; l < 32; l++) {
          Fiber *f = warp + (l ^ last);
          if (f->state == POLLING) {
            es_self = f;
            if (f->poll(f)) f->state = READY;
          }
          if (f->state != READY) continue;
          es_self = f;
          es_switch(&scheduler, f->stack_pointer);
          ran = moved = true;
        }
      }
      for (int l = 0; l < 32; l++) live |= warp[l].state != DONE;
    }
    if (!live) return;
    if (!moved) deadlock();
  }
}

static void prepare_fiber(int i) {
  Fiber *f = fibers + i;
  char *bottom = stacks + (int64_t)i * STACK;
  memset(bottom, 0x5a, 64);
  void **top = (void **)(bottom + STACK) - SAVED;
  memset(top, 0, SAVED * sizeof *top);
  top[RETURN] = (void *)start;
  const unsigned thread = i % launch->threads;
  f->stack_pointer = top;
  f->home = blocks + i / launch->threads;
  f->block = f->home->index;
  f->thread = Dim{thread, 0, 0};
  f->state = READY; f->index = i;
  f->result = f->cluster_phase = f->parity = f->copies = f->group = f->stores = f->store_group = 0;
}

static void run_cluster(Dim first) {
  const unsigned *c = launch->cluster;
  memset(launch->statics, 255, launch->static_bytes);
  for (int i = 0; i < block_count; i++) {
    Block *b = blocks + i;
    const unsigned x = i % c[0], y = i / c[0] % c[1], z = i / c[0] / c[1];
    *b = Block{};
    b->index = Dim{first.x + x, first.y + y, first.z + z};
    b->rank = i; b->live = launch->threads; b->shared = arena + (int64_t)i * REGION;
    for (Named &n : b->named) n.ands = 1;
    memset(b->shared, 255, arena_bytes[i]);
    reset_products(i);
  }
  cluster_arrived = cluster_phase = 0; cluster_live = fiber_count;
  for (int i = 0; i < fiber_count; i++) prepare_fiber(i);
  run_fibers();
  es_self = fibers;
  for (int i = 0; i < block_count; i++) {
    es_self = fibers + i * launch->threads;
    if (blocks[i].transfers) es_fail("the block ended before its loads by the copy engine");
    for (unsigned k = launch->shared; k < arena_bytes[i]; k++)
      if (blocks[i].shared[k] != (char)255)
        es_fail("wrote at %u, past the %u bytes of shared memory", k, launch->shared);
  }
}

static void allocate() {
  if (fibers) return;
  const int access = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  fibers = (Fiber *)mmap(0, sizeof(Fiber) * MAX_FIBERS, access, flags, -1, 0);
  blocks = (Block *)mmap(0, sizeof(Block) * MAX_CLUSTER, access, flags, -1, 0);
  stacks = (char *)mmap(0, (int64_t)STACK * MAX_FIBERS, access, flags, -1, 0);
  char *space = (char *)mmap(0, (int64_t)REGION * (MAX_CLUSTER + 2), PROT_NONE, flags, -1, 0);
  arena = (char *)(((uint64_t)space / REGION + 1) * REGION);
}

/* A trap of the compiler's checks says in its instruction which check it was. */
static const char *trap_reason(const unsigned char *code) {
  const int kind = code[0] == 0x67 && code[1] == 0x0f && code[2] == 0xb9 ? code[4] : -1;
  return kind == 22 ? "misaligned access" : kind == 18 ? "index out of an array's bounds"
    : kind == 20 ? "shift by more than the type's bits" : kind == 3 ? "division by zero"
    : "undefined behaviour (a check of the compiler's)";
}
static void on_signal(int number, siginfo_t *info, void *) {
  if (!pthread_equal(pthread_self(), runner)) { pthread_kill(runner, number); return; }
  const char *at = (const char *)info->si_addr;
  if (number == SIGALRM) es_fail("the launch takes more than a minute: an endless loop?");
  if (number == SIGILL) es_fail("%s", trap_reason((const unsigned char *)at));
  if (number == SIGTRAP) es_fail("undefined behaviour (a check of the compiler's)");
  if (number == SIGFPE) es_fail("division by zero");
  if (info->si_code == SI_KERNEL) es_fail("misaligned access, or no address at all");
  const int64_t offset = at - arena;
  if (offset >= -REGION && offset < (int64_t)MAX_CLUSTER * REGION)
    es_fail("access outside of shared memory: byte %d of %u", (int)(offset % REGION),
      launch->shared);
  es_fail("access to address %p, outside of the operands, or a write to an input", at);
}

static void run_all_blocks() {
  const unsigned *g = launch->grid, *c = launch->cluster;
  const unsigned n[3] = {g[0] / c[0], g[1] / c[1], g[2] / c[2]}, total = n[0] * n[1] * n[2];
  for (unsigned i = 0; i < total; i++) {
    const unsigned k = launch->reversed ? total - 1 - i : i;
    run_cluster(Dim{k % n[0] * c[0], k / n[0] % n[1] * c[1], k / n[0] / n[1] * c[2]});
  }
}

/* Run the blocks, with signals turned into messages. Returns null, or what went wrong. */
static const char *run_guarded() {
  static char handler_stack[1 << 16];
  static const int numbers[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGALRM};
  enum { SIGNALS = sizeof numbers / sizeof *numbers };
  stack_t alternative{}, old_stack;
  alternative.ss_sp = handler_stack; alternative.ss_size = sizeof handler_stack;
  sigaltstack(&alternative, &old_stack);
  struct sigaction ours{}, old[SIGNALS];
  ours.sa_sigaction = on_signal; ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < SIGNALS; i++) sigaction(numbers[i], &ours, old + i);
  const itimerval minute{{0, 0}, {60, 0}}, never{};
  setitimer(ITIMER_REAL, &minute, nullptr);
  const bool failed = sigsetjmp(escape, 1);
  if (!failed) run_all_blocks();
  setitimer(ITIMER_REAL, &never, nullptr);
  for (int i = 0; i < SIGNALS; i++) sigaction(numbers[i], old + i, nullptr);
  sigaltstack(&old_stack, nullptr);
  es_self = nullptr;
  return failed ? message : nullptr;
}

static const char *prepare_and_run(const Launch *what) {
  allocate();
  launch = what; runner = pthread_self(); es_self = nullptr;
  block_count = what->cluster[0] * what->cluster[1] * what->cluster[2];
  fiber_count = block_count * what->threads;
  if (block_count > MAX_CLUSTER || fiber_count > MAX_FIBERS)
    return "the cluster is too big for the emulator";
  if (block_count > 1 && what->static_bytes)
    return "kernels of clusters must use dynamic shared memory only";
  es_block_dim = Dim{what->threads, 1, 1};
  es_grid_dim = Dim{what->grid[0], what->grid[1], what->grid[2]};
  for (int i = 0; i < block_count; i++) {
    char *region = arena + (int64_t)i * REGION;
    arena_bytes[i] = (what->shared + PAGE - 1) / PAGE * PAGE;
    mprotect(region, REGION, PROT_NONE);
    if (arena_bytes[i]) mprotect(region, arena_bytes[i], PROT_READ | PROT_WRITE);
  }
  return run_guarded();
}

/* Runs a launch. Returns null, or what went wrong. Launches of several threads take turns. */
EXPORT const char *es_launch(const Launch *what) {
  static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&one_at_a_time);
  const char *error = prepare_and_run(what);
  pthread_mutex_unlock(&one_at_a_time);
  return error;
}

/* -- memory of operands ------------------------------------------------------------------------ */
/* `bytes` (whole pages) of memory between megabytes without access. */
EXPORT char *es_map(uint64_t bytes) {
  char *p = (char *)mmap(0, bytes + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(p + GUARD, bytes, PROT_READ | PROT_WRITE);
  return p + GUARD;
}
EXPORT void es_protect(char *p, uint64_t bytes, int writable) {
  mprotect(p, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ);
}
EXPORT void es_unmap(char *p, uint64_t bytes) { munmap(p - GUARD, bytes + 2 * GUARD); }
