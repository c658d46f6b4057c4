//! Pages over the same views as the API. They show; they never change.

use axum::Router;

use crate::manager::Manager;

/// Every page.
pub fn router(_manager: Manager) -> Router {
    Router::new()
}
