/* The tensor cores' asynchronous products (wgmma), part of runtime.cpp.

   A product waits in its warp group's queue until a `wgmma_wait` asks for it, so it reads shared
   memory as late as it may. From its start on the accumulators are poison; they get their values
   when the last product that adds to them is done. */
struct Product {
  int sums, kind, group;                     /* sums: which accumulators; kind: 0 half, 1 bf16 */
  bool registers, mn, add;
  uint64_t a, b;                             /* descriptors */
  uint32_t fragments[128][4];
};
struct Sums { float *c[128]; int columns; float value[64][256]; };
enum { MAX_PRODUCTS = 64, MAX_SUMS = 16 };
struct WarpGroup {
  int products, group;
  bool fenced;
  Product product[MAX_PRODUCTS];
  Sums sum[MAX_SUMS];
};
static WarpGroup *warp_groups;               /* of a cluster's blocks, 8 each */

static WarpGroup *warp_group() {
  if (!warp_groups) warp_groups = (WarpGroup *)mmap(0, sizeof(WarpGroup) * 8 * MAX_CLUSTER,
    PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  const Fiber *f = self();
  return warp_groups + f->home->rank * 8 + (f->index - f->home->rank * launch->threads) / 128;
}

/* "Matrix fragments for wgmma.mma_async.m64nNk16" in the PTX manual: the place of c[i] of thread t. */
static float &place_of(Sums &s, int t, int i) {
  return s.value[t / 32 * 16 + i / 2 % 2 * 8 + t % 32 / 4][i / 4 * 8 + t % 4 * 2 + i % 2];
}

/* Element (row, k) of the matrix a descriptor describes, K-major: 8 rows of 128 bytes, the next 8
   "stride" bytes on. MN-major: 8 k of 128 bytes (64 rows), the next 8 k "stride" bytes on, the next
   64 rows "leading" bytes on. "Matrix descriptor format" in the PTX manual. */
static uint16_t element_of(uint64_t descriptor, bool mn, int row, int k) {
  if (descriptor >> 62 != 1 || descriptor >> 49 & 7) es_fail("wgmma: not a descriptor with a swizzle of 128 bytes");
  const uint64_t start = (descriptor & 0x3fff) << 4;
  const uint64_t leading = (descriptor >> 16 & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  const uint64_t at = mn ? start + row / 64 * leading + k / 8 * stride + k % 8 * 128 + row % 64 * 2
                         : start + row / 8 * stride + row % 8 * 128 + k * 2;
  if (at + 2 > launch->shared) es_fail("wgmma: reads past the shared memory");
  uint16_t bits;
  memcpy(&bits, self()->home->shared + swizzled(at, 128), 2);
  return bits;
}

static void execute(WarpGroup *g, const Product &p) {
  static float a[64][16], b[16][256];
  Sums &s = g->sum[p.sums];
  auto value = [&](uint16_t bits) { return p.kind ? bf16_value(bits) : half_value(bits); };
  for (int k = 0; k < 16; k++) {
    for (int n = 0; n < s.columns; n++) b[k][n] = value(element_of(p.b, p.mn, n, k));
    if (!p.registers) for (int m = 0; m < 64; m++) a[m][k] = value(element_of(p.a, false, m, k));
  }
  if (p.registers)
    for (int t = 0; t < 128; t++)
      for (int r = 0; r < 4; r++)
        for (int j = 0; j < 2; j++)
          a[t / 32 * 16 + t % 32 / 4 + r % 2 * 8][t % 4 * 2 + j + r / 2 * 8] = value(p.fragments[t][r] >> 16 * j);
  for (int m = 0; m < 64; m++) {
    if (!p.add) memset(s.value[m], 0, sizeof s.value[m]);
    for (int k = 0; k < 16; k++)
      for (int n = 0; n < s.columns; n++) s.value[m][n] += a[m][k] * b[k][n];
  }
}

struct WgmmaPart { float *c; const uint32_t *fragments; uint64_t a, b; int columns, kind; bool mn, add; };

static void begin_product(void **parts, int) {
  WarpGroup *g = warp_group();
  const WgmmaPart &first = *(WgmmaPart *)parts[0];
  if (!g->fenced) es_fail("wgmma: no wgmma_fence since the last wgmma_wait");
  if (g->products == MAX_PRODUCTS) es_fail("wgmma: more than %d products under way", MAX_PRODUCTS);
  Product &p = g->product[g->products++];
  p.kind = first.kind; p.group = g->group; p.registers = first.fragments; p.mn = first.mn;
  p.add = first.add; p.a = first.a; p.b = first.b;
  p.sums = -1;
  for (int i = 0; i < MAX_SUMS; i++)
    if (g->sum[i].columns && g->sum[i].c[0] == first.c) p.sums = i;
  const bool fresh = p.sums < 0;
  for (int i = 0; fresh && p.sums < 0; i++) {
    if (i == MAX_SUMS) es_fail("wgmma: more than %d accumulators", MAX_SUMS);
    if (!g->sum[i].columns) p.sums = i;
  }
  Sums &s = g->sum[p.sums];
  s.columns = first.columns;
  for (int t = 0; t < 128; t++) {
    const WgmmaPart &x = *(WgmmaPart *)parts[t];
    if (x.a != first.a || x.b != first.b || x.add != first.add || x.columns != first.columns)
      es_fail("wgmma: the threads' arguments differ");
    if (x.fragments) memcpy(p.fragments[t], x.fragments, 16);
    if (!fresh) continue;
    s.c[t] = x.c;
    for (int i = 0; i < s.columns / 2; i++) { place_of(s, t, i) = x.c[i]; memset(x.c + i, 255, 4); }
  }
}

static void fence_products(void **, int) { warp_group()->fenced = true; }
static void commit_products(void **, int) { warp_group()->group++; }

static void wait_products(void **parts, int) {
  WarpGroup *g = warp_group();
  const int n = *(int *)parts[0];
  int done = 0;
  for (; done < g->products && g->product[done].group < g->group - n; done++) execute(g, g->product[done]);
  g->products -= done;
  memmove(g->product, g->product + done, g->products * sizeof(Product));
  bool used[MAX_SUMS] = {};
  for (int i = 0; i < g->products; i++) used[g->product[i].sums] = true;
  for (int i = 0; i < MAX_SUMS; i++) {
    Sums &s = g->sum[i];
    if (used[i] || !s.columns) continue;
    for (int t = 0; t < 128; t++)
      for (int k = 0; k < s.columns / 2; k++) s.c[t][k] = place_of(s, t, k);
    s.columns = 0;
  }
  g->fenced = false;
}

/* fragments: of A, or null where `a` is a descriptor. */
EXPORT void es_wgmma(float *c, const uint32_t *fragments, uint64_t a, uint64_t b, int columns, int kind, bool mn, bool add) {
  WgmmaPart part{c, fragments, a, b, columns, kind, mn, add};
  es_collective(128, "wgmma", begin_product, &part);
}
EXPORT void es_wgmma_fence() { es_collective(128, "wgmma_fence", fence_products, nullptr); }
EXPORT void es_wgmma_commit() { es_collective(128, "wgmma_commit", commit_products, nullptr); }
EXPORT void es_wgmma_wait(int n) { es_collective(128, "wgmma_wait", wait_products, &n); }
/* Before a block runs. */
static void reset_products(int rank) {
  for (int i = 0; warp_groups && i < 8; i++) {
    WarpGroup &g = warp_groups[rank * 8 + i];
    g.products = g.group = g.fenced = 0;
    for (Sums &s : g.sum) s.columns = 0;
  }
}
