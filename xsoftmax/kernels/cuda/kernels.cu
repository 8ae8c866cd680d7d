// Kernels for rows of every length. What is read twice is read from registers, shared memory or the cache.

#include "row_math.cuh"

#include "elements.cuh"
#include "teams.cuh"
#include "view.cuh"
#include "results.cuh"
#include "steps.cuh"
#include "registers.cuh"
#include "products.cuh"
#include "tiles.cuh"
#include "weighing.cuh"

namespace xsoftmax {

// A row in shared memory: of one block, or of a cluster, each of whose blocks has a share.
template <class P, class Team, int n>
XS_FUNCTION void in_shared_memory(const Arguments& a, Int64 row, Int64 step) {
    typedef typename P::A::Real Real;
    typedef Vector<typename P::T, n> Elements;
    Elements* own = static_cast<Elements*>(row_space()) + threadIdx.x;  // each thread reads only what it wrote
    Team team;
    constexpr int stride = Team::size * n;
    for (; row < a.rows; row += step) {
        View<P> view(a, row);
        const int begin = view.template begin<n>(team.lane);
        count_kept(view, team);
        Real x[n], at_label = view.at_label();
        Largest<typename P::A::Compared> top = {-Format<typename P::A::Compared>::infinity()};
        for (int c = begin, i = 0; c < view.classes; c += 4 * stride, i += 4 * Team::threads) {
            Elements elements[4];
            load(view, {c, stride, view.classes}, elements);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                if (c + k * stride >= view.classes) break;
                own[i + k * Team::threads] = elements[k];
                view.template logits<n>(elements[k], c + k * stride, view.classes, x);
#pragma unroll
                for (int j = 0; j < n; ++j) top.merge({typename P::A::Compared(x[j])});
            }
        }
        team.reduce(top);
        Parts<P> parts(top.m, view.a.temperature);
        for (int c = begin, i = 0; c < view.classes; c += stride, i += Team::threads) {
            Real w[n];
            view.template logits<n>(own[i], c, view.classes, x);
            parts.template add_known<n>(view, {c, stride, view.classes}, x, w);
        }
        parts.reduce_known(team);
        Results<P> results(view, parts, at_label);
        if (team.lane == 0) results.store(view);
        for (int c = begin, i = 0; c < view.classes; c += stride, i += Team::threads) {
            store_again(view, results, parts, c, own[i]);
        }
    }
}

template <class P, int threads, int n>
__global__ void __launch_bounds__(threads) shared(const Arguments a) {
    in_shared_memory<P, Block<threads>, n>(a, blockIdx.x, gridDim.x);
}

#if XS_CLUSTERS
template <class P, int blocks, int threads, int n>
__global__ void __cluster_dims__(blocks, 1, 1) __launch_bounds__(threads) clustered(const Arguments a) {
    in_shared_memory<P, Cluster<blocks, threads>, n>(a, blockIdx.x / blocks, gridDim.x / blocks);
}
#endif

// The part of a row that is in classes begin … end, where begin is that of a vector.
template <class P, class Team, int n>
XS_FUNCTION void add_all(const View<P>& view, const Team& team, Parts<P>& parts, int begin, int end) {
    constexpr int vectors = n == 1 ? 8 : 4, together = n < 4 ? 4 / n : 1, stride = Team::size * n;
    for (int c = begin + team.lane * n; c < end; c += vectors * stride) {
        Vector<typename P::T, n> elements[vectors];
        load(view, {c, stride, end}, elements);
#pragma unroll
        for (int i = 0; i < vectors; i += together) {
            typename P::A::Real x[together * n];
            Classes classes = {c + i * stride, stride, end};
#pragma unroll
            for (int k = 0; k < together; ++k) {
                view.template logits<n>(elements[i + k], classes.c + k * stride, end, x + k * n);
            }
            parts.template add<n>(view, classes, x);
        }
    }
}

// The results of classes begin … end, where there is a place for them.
template <class P, class Team, int n>
XS_FUNCTION void store_all(const View<P>& view, const Team& team, const Results<P>& results, const Parts<P>& parts,
                           int begin, int end) {
    if constexpr (P::verb != logsumexp) {
        if (!view.y) return;
        constexpr int vectors = n == 1 ? 8 : 4, stride = Team::size * n;
        for (int c = begin + team.lane * n; c < end; c += vectors * stride) {
            Vector<typename P::T, n> elements[vectors];
            load(view, {c, stride, end}, elements);
#pragma unroll
            for (int i = 0; i < vectors; ++i) {
                if (c + i * stride < end) store_again(view, results, parts, c + i * stride, elements[i]);
            }
        }
    }
}

// A row of any length: read once for a number, twice for numbers of its classes.
template <class P, class Team, int n>
__global__ void __launch_bounds__(Team::threads) swept(const Arguments a) {
    Team team;
    for (Int64 first = Int64(blockIdx.x) * Team::rows; first < a.rows; first += Int64(gridDim.x) * Team::rows) {
        View<P> view(a, first + team.slot);
        count_kept(view, team);
        typename P::A::Real at_label = view.at_label();
        Parts<P> parts(-Format<typename P::A::Real>::infinity(), a.temperature);
        add_all<P, Team, n>(view, team, parts, view.template begin<n>(0), view.classes);
        team.reduce(parts);
        Results<P> results(view, parts, at_label);
        if (!view.exists) continue;
        if (team.lane == 0) results.store(view);
        store_all<P, Team, n>(view, team, results, parts, view.template begin<n>(0), view.classes);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Few rows: each is cut into `slices`, a block for each; first their parts, then from these the results.

template <class P>
struct Piece {
    Parts<P> parts;
    typename P::A::Real at_label;  // read before a gradient in place can overwrite it
};

enum { piece_numbers = 20 };  // no piece is larger

// Whole vectors.
template <class P, int n>
struct Slice {
    View<P> view;
    int index, begin, end;

    XS_FUNCTION explicit Slice(const Arguments& a) : view(a, blockIdx.x / a.slices) {
        index = int(blockIdx.x - view.row * a.slices);
        const int first = view.template begin<n>(0);
        Int64 whole = a.classes - first, vectors = (whole + n - 1) / n;
        Int64 length = (vectors + a.slices - 1) / a.slices * n;
        Int64 from = index * length < whole ? index * length : whole;
        begin = first + int(from);
        end = first + int(from + length < whole ? from + length : whole);
    }
};

template <class P, int threads, int n>
__global__ void __launch_bounds__(threads) piece(const Arguments a) {
    static_assert(sizeof(Piece<P>) <= piece_numbers * sizeof(typename P::A::Real), "larger than the workspace has it");
    Block<threads> team;
    Slice<P, n> slice(a);
    View<P>& view = slice.view;
    count_kept(view, team);
    Piece<P> piece = {Parts<P>(-Format<typename P::A::Real>::infinity(), a.temperature), view.at_label()};
    add_all<P, Block<threads>, n>(view, team, piece.parts, slice.begin, slice.end);
    team.reduce(piece.parts);
    if (team.lane == 0) static_cast<Piece<P>*>(a.pieces)[blockIdx.x] = piece;
}

template <class P, int threads, int n>
__global__ void __launch_bounds__(threads) joined(const Arguments a) {
    Block<threads> team;
    Slice<P, n> slice(a);
    View<P>& view = slice.view;
    count_kept(view, team);
    const Piece<P>* pieces = static_cast<const Piece<P>*>(a.pieces) + view.row * a.slices;
    Parts<P> parts(-Format<typename P::A::Real>::infinity(), a.temperature);
    for (int i = team.lane; i < a.slices; i += threads) parts.merge(pieces[i].parts);
    team.reduce(parts);
    Results<P> results(view, parts, pieces[0].at_label);
    if (slice.index == 0 && team.lane == 0) results.store(view);
    store_all<P, Block<threads>, n>(view, team, results, parts, slice.begin, slice.end);
}

}  // namespace xsoftmax
