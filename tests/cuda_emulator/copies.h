/* Copies that run on their own, and the barriers in shared memory that tell when they are done:
   part of runtime.cpp. */

/* -- asynchronous copies of a thread ----------------------------------------------------------- */
/* Do the copies of the groups before one. */
static void finish_copies(Fiber *f, int before) {
  int kept = 0;
  for (int i = 0; i < f->copies; i++) {
    const Copy c = f->copy[i];
    if (c.group >= before) f->copy[kept++] = c;
    else if (c.from) memcpy(c.to, c.from, c.bytes);
    else memset(c.to, 0, c.bytes);
  }
  f->copies = kept;
}
EXPORT void es_cp_async(void *to, const void *from, int bytes, bool valid) {
  Fiber *f = self();
  require_shared(to, bytes, "cp_async");
  if ((uint64_t)from % bytes)
    es_fail("cp_async: source %p is not aligned to %d bytes", from, bytes);
  if (f->copies == MAX_COPIES) es_fail("more than %d asynchronous copies under way", MAX_COPIES);
  memset(to, 255, bytes);
  f->copy[f->copies++] = Copy{(char *)to, valid ? (const char *)from : nullptr, bytes, f->group};
}
EXPORT void es_cp_async_commit() { self()->group++; }
/* All but the last n groups are done. (Copies that no commit followed belong to the next group.) */
EXPORT void es_cp_async_wait(int n) { finish_copies(self(), self()->group - n); }

/* -- barriers in shared memory ----------------------------------------------------------------- */
/* 64 bits: bytes still expected (32, signed), arrivals still expected (14), of each phase (14), the
   phase's parity (1), and a mark that poison doesn't have (3). */
struct Arrivals { int32_t bytes; uint32_t pending : 14, count : 14, parity : 1, mark : 3; };
static_assert(sizeof(Arrivals) == 8, "Arrivals");

static Arrivals *arrivals(uint64_t *p, const char *what) {
  require_shared(p, 8, what);
  Arrivals *a = (Arrivals *)p;
  if (a->mark != 5) es_fail("%s: the barrier is not initialised", what);
  return a;
}
static void complete_phase(Arrivals *a) {
  if (a->pending || a->bytes) return;
  a->pending = a->count; a->parity ^= 1;
}
EXPORT void es_mbarrier_init(uint64_t *p, int count) {
  require_shared(p, 8, "barrier_init");
  if (count < 1 || count > 16383) es_fail("barrier_init: %d arrivals", count);
  Arrivals a{0, (uint32_t)count, (uint32_t)count, 0, 5};
  memcpy(p, &a, 8);
}
EXPORT void es_mbarrier_arrive(uint64_t *p, int bytes) {
  Arrivals *a = arrivals(p, "barrier_arrive");
  if (!a->pending) es_fail("barrier_arrive: more arrivals than the %d expected", (int)a->count);
  a->bytes += bytes; a->pending--;
  complete_phase(a);
}
static void transfer(const Transfer &t);
EXPORT void es_mbarrier_wait(uint64_t *p, int parity) {
  Fiber *f = self();
  if (parity != 0 && parity != 1) es_fail("barrier_wait: parity %d", parity);
  f->barrier = p; f->parity = parity;
  poll_until([](Fiber *f) {
    Block *b = f->home;
    int kept = 0;
    const int count = b->transfers;
    for (int i = 0; i < count; i++)
      if (b->transfer[i].barrier == f->barrier) transfer(b->transfer[i]);
      else b->transfer[kept++] = b->transfer[i];
    b->transfers = kept;
    return arrivals(f->barrier, "barrier_wait")->parity != (unsigned)f->parity;
  }, WAIT);
}
EXPORT void es_mbarrier_cp_async(uint64_t *p) {
  finish_copies(self(), self()->group + 1);
  es_mbarrier_arrive(p, 0);
}

/* -- the copy engine --------------------------------------------------------------------------- */
static int box_of(const TensorMap &m, int axis) {
  return axis < m.rank ? (m.box[axis] + m.steps[axis] - 1) / m.steps[axis] : 1;
}
/* Where a byte of a box lies: 16-byte pieces change places within a row of `swizzle` bytes, by the
   number of the 128-byte row. */
static uint64_t swizzled(uint64_t address, int swizzle) {
  const uint64_t pieces = swizzle / 16 - (swizzle > 0);
  return address ^ (address >> 7 & pieces) << 4;
}
/* Move one box, element by element; outside of the tensor, zeros are loaded, nothing is stored. */
static void transfer(const Transfer &t) {
  const TensorMap &m = t.map;
  int n[5], bytes = m.item;
  for (int k = 0; k < 5; k++) { n[k] = box_of(m, k); bytes *= n[k]; }
  uint64_t offset = 0;
  for (int e = 0; e < n[4]; e++) for (int d = 0; d < n[3]; d++) for (int c = 0; c < n[2]; c++)
    for (int b = 0; b < n[1]; b++) for (int a = 0; a < n[0]; a++, offset += m.item) {
      const int at[5] = {a, b, c, d, e};
      char *memory = m.base, *shared = (char *)swizzled((uint64_t)t.shared + offset, m.swizzle);
      bool inside = true;
      for (int k = 0; k < m.rank; k++) {
        const int64_t i = t.at[k] + (int64_t)at[k] * m.steps[k];
        inside &= i >= 0 && i < m.sizes[k];
        memory += i * (k ? m.strides[k - 1] : m.item);
      }
      if (t.store) { if (inside) memcpy(memory, shared, m.item); }
      else if (inside) memcpy(shared, memory, m.item);
      else memset(shared, 0, m.item);
    }
  if (t.store) return;
  Arrivals *arrived = arrivals(t.barrier, "tma_load");
  arrived->bytes -= bytes;
  complete_phase(arrived);
}
static Transfer make_transfer(
    const char *what, const TensorMap *m, const void *shared, uint64_t *barrier, int rank,
    const int *at, bool store) {
  if ((uint64_t)m % 64) es_fail("%s: the tensor map is not aligned to 64 bytes", what);
  if (m->rank != rank) es_fail("%s: the tensor has %d axes", what, m->rank);
  require_shared(shared, m->swizzle > 32 ? m->swizzle * 8 : 128, what);
  Transfer t{*m, (char *)shared, barrier, {}, store};
  for (int k = 0; k < rank; k++) t.at[k] = at[k];
  return t;
}
static void begin_load(
    Block *b, void *to, const TensorMap *m, uint64_t *barrier, int rank, const int *at) {
  Transfer t = make_transfer("tma_load", m, to, barrier, rank, at, false);
  arrivals(barrier, "tma_load");
  int bytes = m->item;
  for (int k = 0; k < rank; k++) bytes *= box_of(*m, k);
  memset(to, 255, bytes);
  if (b->transfers == MAX_TMA) es_fail("more than %d loads that nobody waits for", MAX_TMA);
  b->transfer[b->transfers++] = t;
}
EXPORT void es_tma_load(void *to, const TensorMap *m, uint64_t *barrier, int rank, const int *at) {
  begin_load(self()->home, to, m, barrier, rank, at);
}
/* To the same place in the blocks of the cluster whose bits are set. */
EXPORT void es_tma_multicast(
    void *to, const TensorMap *m, uint64_t *barrier, int rank, const int *at, int chosen) {
  if (chosen <= 0 || chosen >> block_count)
    es_fail("tma_load: blocks %#x of a cluster of %d", chosen, block_count);
  for (int i = 0; i < block_count; i++)
    if (chosen >> i & 1)
      begin_load(blocks + i, es_shared_pointer(es_cluster_address(to, i)), m,
                 (uint64_t *)es_shared_pointer(es_cluster_address(barrier, i)), rank, at);
}
EXPORT void es_tma_store(const TensorMap *m, const void *from, int rank, const int *at) {
  Fiber *f = self();
  Transfer t = make_transfer("tma_store", m, from, nullptr, rank, at, true);
  if (f->stores == 8) es_fail("more than 8 stores of the copy engine under way");
  f->store[f->stores].transfer = t;
  f->store[f->stores++].group = f->store_group;
}
EXPORT void es_tma_commit() { self()->store_group++; }
static void finish_stores(Fiber *f, int groups) {
  int kept = 0;
  for (int i = 0; i < f->stores; i++)
    if (groups && f->store[i].group >= f->store_group - groups) f->store[kept++] = f->store[i];
    else transfer(f->store[i].transfer);
  f->stores = kept;
}
EXPORT void es_tma_wait(int n) { finish_stores(self(), n); }
