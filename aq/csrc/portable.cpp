// What any processor runs.
#include <omp.h>
#include <stdlib.h>

#include "encoder.h"

namespace encoder_portable {
#include "vectors.h"
#include "products.h"
#include "choice.h"
#include "search.h"
#include "passes.h"
#include "sums.h"
#include "kmeans.h"
#include "factor.h"
}  // namespace encoder_portable
