"""Loads models and data by name. Files that could run code by unpickling are refused unless the user allows them."""

from sparsify.loading.data import Data as Data
from sparsify.loading.data import load_data as load_data
from sparsify.loading.models import digits_cnn as digits_cnn
from sparsify.loading.models import digits_wide_cnn as digits_wide_cnn
from sparsify.loading.models import load_model as load_model
from sparsify.loading.ood import load_ood as load_ood
