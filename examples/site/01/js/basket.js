// What is in the basket, kept in the visitor's browser.
"use strict";
const KEY = "basket-v1";

function load() {
  try { return JSON.parse(localStorage.getItem(KEY)) || {}; } catch { return {}; }
}

for (const button of document.querySelectorAll("[data-basket]")) {
  button.addEventListener("click", () => {
    const basket = load();
    const name = button.dataset.basket;
    basket[name] = (basket[name] || 0) + 1;
    localStorage.setItem(KEY, JSON.stringify(basket));
    button.textContent = "In the basket";
  });
}
