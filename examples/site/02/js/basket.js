// What is in the basket, kept in the visitor's browser.
"use strict";
const KEY = "basket-v2";

function load() {
  try { return JSON.parse(localStorage.getItem(KEY)) || {}; } catch { return {}; }
}

function count(basket) {
  return Object.values(basket).reduce((sum, n) => sum + n, 0);
}

for (const button of document.querySelectorAll("[data-basket]")) {
  button.addEventListener("click", () => {
    const basket = load();
    const name = button.dataset.basket;
    basket[name] = (basket[name] || 0) + 1;
    localStorage.setItem(KEY, JSON.stringify(basket));
    button.textContent = `In the basket (${count(basket)})`;
  });
}
