"""The C text of the thread pool that every plan's shared object carries.

It is freestanding: types come from the prelude, Linux is called by inline assembly (x86-64).
Threads are made by the caller of `es_worker` (the runtime parks Python daemon threads there).

Exports:

    int64_t es_pool_bytes(int64_t threads)            bytes to allocate, 64-byte aligned
    void es_pool_init(void *pool, int64_t threads, char *scratch, int64_t stride)
    void es_pool_scratch(void *pool, char *scratch, int64_t stride)   new scratch; not during a run
    void es_worker(void *pool, int64_t id)            thread 1..threads-1, until es_pool_stop
    void es_pool_stop(void *pool)                     not during a run
    void es_begin(void *pool), es_end(void *pool)     around a run, on the calling thread
    void es_parallel(void *pool, fn, char *const *p, const int64_t *d, int64_t tasks)
    int64_t es_now(void)                              monotonic nanoseconds

How a parallel region works. `epoch` is odd while a region is open. The caller writes the region's
description, gives every thread a contiguous share of the tasks, and makes `epoch` odd. A worker
that sees this raises its own `state`, looks at `epoch` again and, if it is still odd, works; then
it lowers `state`. The caller works too; when it finds no task left it makes `epoch` even and waits
until every `state` is down. So a region waits only for workers that are in the middle of a task,
never for one that the kernel hasn't scheduled yet, which keeps oversubscribed machines fast; and
there is no shared counter that all threads hammer. Raising `state` and closing `epoch` are
sequentially consistent exchanges followed by a load of the other (Dekker's protocol): either the
worker sees the region closed or the caller sees the worker.

Tasks: a thread takes chunks of its own share first, the same tasks for the same thread in each
region, so that a thread finds in its cache what it wrote a step before; then it takes from the
others.

Waiting: up to SPIN cycles of `pause`, then a futex. `sleepers` is raised before a worker's futex
wait and read after `epoch` is changed; the kernel compares `epoch` under its own lock before it
sleeps, so no wake-up is lost.

Denormals: es_begin and es_worker set flush-to-zero and denormals-are-zero. A denormal operand or
result costs a microcode assist of 100-200 cycles, networks with ReLU or sigmoid tails meet them,
and 1e-38 means nothing in an activation; es_end gives the calling thread its own mode back.
"""

from __future__ import annotations

POOL = r"""
#define SPIN 200000ull /* cycles of the time stamp counter: 50-100 microseconds */
#define LINE __attribute__((aligned(64)))
#define HIDDEN __attribute__((visibility("hidden")))
#define PLAIN HIDDEN __attribute__((no_builtin)) /* never turned into a call of itself */
#define LOAD(x) __atomic_load_n(x, __ATOMIC_ACQUIRE)
#define SWAP(x, v) __atomic_exchange_n(x, v, __ATOMIC_SEQ_CST)

typedef unsigned long size_t;
typedef void (*es_fn)(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch);

typedef struct {
  LINE int64_t next; /* the first task nobody has taken */
  int64_t end;
  LINE uint32_t state; /* 0: outside, 1: inside a region, 2: inside, and the caller sleeps on it */
} es_slot;

typedef struct {
  LINE uint32_t epoch; /* odd: a region is open */
  LINE uint32_t sleepers;
  uint32_t stop;
  LINE es_fn fn;
  char *const *p;
  const int64_t *d;
  int64_t chunk;
  char *scratch;
  int64_t stride;
  int64_t threads;
  uint32_t mxcsr;
  es_slot slots[];
} es_pool;

INLINE int64_t es_syscall(int64_t n, int64_t a, int64_t b, int64_t c, int64_t d) {
  register int64_t r10 __asm__("r10") = d;
  __asm__ volatile("syscall" : "+a"(n) : "D"(a), "S"(b), "d"(c), "r"(r10)
                   : "rcx", "r11", "memory");
  return n;
}

/* 202 is futex; 128: private wait without a timeout, 129: private wake. */
INLINE void es_sleep(uint32_t *word, uint32_t value) {
  es_syscall(202, (int64_t)word, 128, value, 0);
}
INLINE void es_wake(uint32_t *word, int64_t count) {
  es_syscall(202, (int64_t)word, 129, count, 0);
}

int64_t es_now(void) {
  int64_t t[2];
  es_syscall(228, 1, (int64_t)t, 0, 0); /* clock_gettime(CLOCK_MONOTONIC) */
  return t[0] * 1000000000 + t[1];
}

int64_t es_pool_bytes(int64_t threads) {
  return sizeof(es_pool) + threads * sizeof(es_slot);
}

void es_pool_scratch(void *pool, char *scratch, int64_t stride) {
  es_pool *q = pool;
  q->scratch = scratch;
  q->stride = stride;
}

void es_pool_init(void *pool, int64_t threads, char *scratch, int64_t stride) {
  es_pool *q = pool;
  q->epoch = q->sleepers = q->stop = 0;
  q->threads = threads;
  for (int64_t i = 0; i < threads; i++) q->slots[i] = (es_slot){0};
  es_pool_scratch(pool, scratch, stride);
}

void es_begin(void *pool) {
  es_pool *q = pool;
  q->mxcsr = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(0x9fc0); /* all exceptions masked, round to nearest, FTZ, DAZ */
}

void es_end(void *pool) { __builtin_ia32_ldmxcsr(((es_pool *)pool)->mxcsr); }

/* Take tasks until none is left: own share first, then the others'. */
static void es_work(es_pool *q, int64_t id) {
  char *scratch = q->scratch + id * q->stride;
  const int64_t chunk = q->chunk, threads = q->threads;
  int64_t victim = id;
  for (int64_t i = 0; i < threads; i++) {
    es_slot *s = &q->slots[victim];
    const int64_t end = s->end;
    while (__atomic_load_n(&s->next, __ATOMIC_RELAXED) < end) {
      int64_t t = __atomic_fetch_add(&s->next, chunk, __ATOMIC_RELAXED);
      if (t >= end) break;
      q->fn(q->p, q->d, t, imin(t + chunk, end), scratch);
    }
    if (++victim == threads) victim = 0;
  }
}

/* Wait until worker `s` is outside the region. */
static void es_join(es_slot *s) {
  uint64_t start = __builtin_ia32_rdtsc();
  while (LOAD(&s->state)) {
    __builtin_ia32_pause();
    if (__builtin_ia32_rdtsc() - start < SPIN) continue;
    uint32_t inside = 1;
    if (__atomic_compare_exchange_n(&s->state, &inside, 2, 0, __ATOMIC_SEQ_CST,
                                    __ATOMIC_SEQ_CST) || inside == 2)
      es_sleep(&s->state, 2);
  }
}

void es_parallel(void *pool, es_fn fn, char *const *p, const int64_t *d, int64_t tasks) {
  es_pool *q = pool;
  const int64_t threads = q->threads;
  if (tasks <= 0) return;
  if (tasks == 1 || threads == 1) {
    fn(p, d, 0, tasks, q->scratch);
    return;
  }
  const int64_t share = tasks / threads, rest = tasks % threads;
  q->fn = fn;
  q->p = p;
  q->d = d;
  q->chunk = 1 + share / 64; /* at most 1.6 % of a share is left to one thread at the end */
  for (int64_t i = 0, at = 0; i < threads; i++) {
    q->slots[i].next = at;
    q->slots[i].end = at += share + (i < rest);
  }
  const uint32_t open = q->epoch + 1;
  SWAP(&q->epoch, open);
  if (LOAD(&q->sleepers)) es_wake(&q->epoch, imin(tasks, threads) - 1);
  es_work(q, 0);
  SWAP(&q->epoch, open + 1);
  for (int64_t i = 1; i < threads; i++) es_join(&q->slots[i]);
}

/* Wait until `epoch` is no longer `seen`; the new value. */
static uint32_t es_await(es_pool *q, uint32_t seen) {
  uint64_t start = __builtin_ia32_rdtsc();
  uint32_t epoch;
  while ((epoch = LOAD(&q->epoch)) == seen) {
    __builtin_ia32_pause();
    if (__builtin_ia32_rdtsc() - start < SPIN) continue;
    __atomic_fetch_add(&q->sleepers, 1, __ATOMIC_SEQ_CST);
    es_sleep(&q->epoch, seen);
    __atomic_fetch_sub(&q->sleepers, 1, __ATOMIC_SEQ_CST);
  }
  return epoch;
}

void es_worker(void *pool, int64_t id) {
  es_pool *q = pool;
  es_slot *s = &q->slots[id];
  uint32_t seen = 0;
  const uint32_t mxcsr = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(0x9fc0); /* see es_begin */
  while (!LOAD(&q->stop)) {
    seen = es_await(q, seen);
    if (!(seen & 1)) continue;
    SWAP(&s->state, 1);
    seen = __atomic_load_n(&q->epoch, __ATOMIC_SEQ_CST);
    if (seen & 1) es_work(q, id);
    if (SWAP(&s->state, 0) == 2) es_wake(&s->state, 1);
  }
  __builtin_ia32_ldmxcsr(mxcsr);
}

void es_pool_stop(void *pool) {
  es_pool *q = pool;
  __atomic_store_n(&q->stop, 1, __ATOMIC_SEQ_CST);
  __atomic_fetch_add(&q->epoch, 2, __ATOMIC_SEQ_CST);
  es_wake(&q->epoch, 0x7fffffff);
}

/* What clang may call without being asked. Hidden, so that a libc's never gets in the way. */

PLAIN void *memcpy(void *restrict to, const void *restrict from, size_t n) {
  char *t = to;
  const char *f = from;
  if (n >= 1024) {
    __asm__ volatile("rep movsb" : "+D"(t), "+S"(f), "+c"(n) : : "memory");
    return to;
  }
  for (; n >= sizeof(vf); n -= sizeof(vf), t += sizeof(vf), f += sizeof(vf))
    *(vf *)t = *(const vf *)f;
  for (; n; n--) *t++ = *f++;
  return to;
}

PLAIN void *memmove(void *to, const void *from, size_t n) {
  char *t = to;
  const char *f = from;
  if ((size_t)(t - f) >= n) { /* no byte is overwritten before it is read forwards */
    __asm__ volatile("rep movsb" : "+D"(t), "+S"(f), "+c"(n) : : "memory");
    return to;
  }
  t += n, f += n;
  for (; n >= sizeof(vf); n -= sizeof(vf)) {
    t -= sizeof(vf), f -= sizeof(vf);
    vf x = *(const vf *)f;
    *(vf *)t = x;
  }
  for (; n; n--) *--t = *--f;
  return to;
}

PLAIN void *memset(void *to, int value, size_t n) {
  char *t = to;
  __asm__ volatile("rep stosb" : "+D"(t), "+c"(n) : "a"(value) : "memory");
  return to;
}

PLAIN int memcmp(const void *a, const void *b, size_t n) {
  const unsigned char *x = a, *y = b;
  for (; n; n--, x++, y++)
    if (*x != *y) return *x - *y;
  return 0;
}
"""
"""Compile it once per plan: `compile_object(POOL, target, cache)`."""
